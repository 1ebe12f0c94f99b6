//! Reads every value once and answers an action a slice: what is measured around it is the boundary.

use plastic_plugin::prelude::*;

/// Keeps of each slice what holds nine tenths of its energy, estimated from the sum of squares.
#[derive(Default)]
pub struct Sum;

impl RankPolicy for Sum {
    type Options = NoOptions;

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        for slice in seen.slices() {
            let values = slice.spectrum("fisher");
            let energy = sum_of_squares(values);
            let largest = values.first().map_or(1.0, |v| (v * v).max(f32::MIN_POSITIVE));
            let rank = (0.9 * energy / largest) as usize;
            plan.set_rank(slice, rank.clamp(1, slice.max_rank().max(1)), "nine tenths");
        }
        Ok(plan)
    }
}

/// Sixteen sums side by side: the order is fixed, and the loop is short.
fn sum_of_squares(values: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum += v * v;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

export_policy!(Sum, name: "sum");

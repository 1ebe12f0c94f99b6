//! The policy `water-fill`: spend the whole budget, each parameter where it is worth most.
//!
//! Component i of a slice j (m × n) costs m + n parameters and is worth the energy s², its singular
//! value squared; in the metric `fisher` half of that is loss, in nats per token. The least energy
//! sleeps at a given number of parameters if one level λ, the price of a parameter, decides for all:
//!
//! ```text
//! component i of slice j stays awake  iff  s_ji² / (m_j + n_j) >= λ,
//! slice j stays dense                 iff  λ m n <= tail(r) + λ r (m + n).
//! ```
//!
//! This is reverse water-filling, known from rate distortion (Cover & Thomas, Elements of Information
//! Theory, 2nd ed. 2006, section 10.3.3); λ is the Lagrange multiplier of the budget and is found by
//! bisection ([`plastic_plugin::water`]). Components and dense slices come in pieces; what the level
//! leaves unspent goes to the best pieces that still fit, until none does.

use plastic_plugin::goal::{Goal, Way};
use plastic_plugin::keep::{self, Keep};
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::{self, Spectrum};
use plastic_plugin::water::{self, Basin};

plastic_plugin::options! {
    /// Options of the water-fill policy.
    pub struct Options {
        /// Metric a component's worth is counted in: fisher (in units of loss, comparable between slices), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Share of the run's budget to spend.
        #[range(0.0..=1.0)]
        pub spend: f64 = 1.0,
        /// Ranks are multiples of this; some devices multiply such matrices faster.
        #[range(1..=256)]
        pub multiple: u32 = 1,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
        /// Spread the way to the budget over the steps of the run, instead of taking it at once.
        pub ramp: bool = true,
    }
}

/// The policy and how far it has come.
#[derive(Default)]
pub struct WaterFill {
    options: Options,
    goal: Goal,
}

impl RankPolicy for WaterFill {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["compress", "train"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn needs(&self) -> Vec<String> {
        vec![format!("spectrum:{}", self.options.metric)]
    }

    fn start(&mut self, _: &Run, _: &[Slice]) -> Result<(), String> {
        self.goal = Goal::default();
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let Options { metric, spend, multiple, min_rank, ramp } = self.options;
        let metric = metric.as_str();
        let (slices, fixed) = keep::open(seen);
        let basins: Vec<Basin> = slices.iter().map(|s| Basin::of(*s, metric)).collect::<Result<_, _>>()?;
        let enough = (spend * seen.run().budget as f64) as u64;
        let way = Way { metric, enough: Some(enough.saturating_sub(fixed)), ramp };
        self.goal.step(seen, &way, |budget| {
            let kept = fill(&slices, &basins, budget, multiple as usize, min_rank as usize)?;
            let why = |(s, k): (&SliceView, Keep)| (k, reason(*s, metric, k));
            Some(slices.iter().zip(kept).map(why).collect())
        })
    }

    fn snapshot(&self) -> Vec<u8> {
        self.goal.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.goal = Goal::from_bytes(state)?;
        Ok(())
    }
}

/// The most energy that the budget holds, in whole blocks of components.
fn fill(slices: &[SliceView], basins: &[Basin], budget: u64, multiple: usize, min_rank: usize) -> Option<Vec<Keep>> {
    let blocks: Vec<Basin> = basins.iter().map(|b| b.in_blocks(multiple)).collect();
    let mut kept = water::fill(&blocks, budget, min_rank.div_ceil(multiple))?;
    top_up(&blocks, &mut kept, budget);
    let in_components = |(s, k): (&SliceView, Keep)| match k {
        Keep::Rank(blocks) => Keep::Rank((blocks * multiple).min(s.max_rank())),
        Keep::Dense => Keep::Dense,
    };
    Some(slices.iter().zip(kept).map(in_components).collect())
}

/// Makes slices dense again that are nearly so, where what is left of the budget suffices; those
/// that lose the most first.
fn top_up(basins: &[Basin], kept: &mut [Keep], budget: u64) {
    let mut order: Vec<usize> = (0..basins.len()).filter(|&i| basins[i].may_be_dense()).collect();
    order.sort_by(|&a, &b| basins[b].lost(kept[b]).total_cmp(&basins[a].lost(kept[a])).then(a.cmp(&b)));
    let mut used = water::parameters(basins, kept);
    for i in order {
        let more = basins[i].parameters(Keep::Dense).saturating_sub(basins[i].parameters(kept[i]));
        if used + more <= budget {
            (kept[i], used) = (Keep::Dense, used + more);
        }
    }
}

fn reason(slice: SliceView, metric: &str, keep: Keep) -> String {
    let Keep::Rank(rank) = keep else { return "worth its parameters: factors would save too few".into() };
    let values = slice.spectrum(metric);
    let worth = |i: usize| values.get(i).map_or(0.0, |s| spectrum::square(*s) / slice.parameters(1) as f64);
    let (last, next) = (worth(rank.saturating_sub(1)), worth(rank));
    let held = spectrum::held_percent(values, rank);
    format!(
        "{held:.1} % of this slice's energy in {rank} of {}; a parameter of the last is worth {last:.1e}, of the next {next:.1e}",
        slice.max_rank()
    )
}

export_policy!(WaterFill, name: "water-fill");

#[cfg(test)]
mod tests;

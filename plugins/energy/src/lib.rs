//! x
use plastic_plugin::prelude::*;
#[derive(Default)]
struct Halve;
impl RankPolicy for Halve {
    type Options = NoOptions;
    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        for slice in seen.slices() {
            let s: f32 = slice.spectrum("fisher").iter().map(|v| v * v).sum();
            plan.set_rank(slice, slice.max_rank() / 2, format!("half of {s}"));
        }
        Ok(plan)
    }
}
export_policy!(Halve, name: "energy");

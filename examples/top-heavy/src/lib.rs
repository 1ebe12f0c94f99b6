//! A policy in ten lines: the later a layer, the more of the budget it gets.

use plastic_plugin::prelude::*;

#[derive(Default)]
struct TopHeavy;

impl RankPolicy for TopHeavy {
    type Options = NoOptions;

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let last = seen.slices().map(|s| s.layer()).max().unwrap_or(0).max(1) as f64;
        let weight = |s: SliceView| s.dense_parameters() as f64 * (1.0 + s.layer() as f64 / last);
        let total: f64 = seen.slices().map(weight).sum();
        let mut plan = Plan::new();
        for slice in seen.slices().filter(|s| !s.is_frozen()) {
            let share = seen.run().budget as f64 * weight(slice) / total;
            let rank = (share / slice.parameters(1) as f64) as usize;
            let why = format!("layer {} of {last}: {} parameters", slice.layer(), share as u64);
            if slice.saves(rank) { plan.set_rank(slice, rank, why) } else { plan.dense(slice, why) };
        }
        Ok(plan)
    }
}

export_policy!(TopHeavy);

#[cfg(test)]
mod tests {
    use super::*;
    use plastic_plugin::testing::{Model, Session};

    #[test]
    fn late_layers_keep_more() {
        let spectrum = || (1..=64).map(|i| 1.0 / i as f32);
        let model = Model::new(0.4).slice("first", 64, 64, "fisher", spectrum()).slice("last", 64, 64, "fisher", spectrum());
        let mut session = Session::<TopHeavy>::new(model, "{}").unwrap();
        let plan = session.decide().unwrap();
        session.commit(&plan);
        let ranks: Vec<u32> = session.model().states.iter().map(|s| s.awake).collect();
        assert_eq!(ranks, [8, 17], "a third and two thirds of 0.4 of 2 x 64 x 64, at 128 a component: 8.5 and 17");
    }
}

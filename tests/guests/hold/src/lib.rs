//! Reads every singular value once and changes nothing: a step with it is the loop alone.

use plastic_plugin::prelude::*;

/// Holds, whatever it sees.
#[derive(Default)]
pub struct Hold;

impl RankPolicy for Hold {
    type Options = NoOptions;

    fn needs(&self) -> Vec<String> {
        vec!["spectrum:plain".to_owned()]
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let values = seen.slices().flat_map(|slice| slice.spectrum("plain"));
        match values.map(|v| v * v).sum::<f32>().is_finite() {
            true => Ok(Plan::new()),
            false => Err("a singular value is not finite".into()),
        }
    }
}

export_policy!(Hold, name: "hold");

//! A made-up model: slices with made-up statistics that sleep and wake as plans tell them.

use super::PlanRules;
use super::spectra::{self, Damage, Family};
use crate::plugin::contract::{Metric, Observation, Outcome, Plan, Run, Series, Slice, SliceState};
use rand::Rng;
use rand::seq::SliceRandom;

/// What is awake in one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// On the base's own weights; nothing is asleep then.
    pub dense: bool,
    /// One flag a component, largest first: whether it sleeps.
    pub asleep: Vec<bool>,
    /// Accepts no change.
    pub frozen: bool,
}

impl Standing {
    /// Components awake.
    pub fn awake(&self) -> u32 {
        self.asleep.iter().filter(|a| !**a).count() as u32
    }

    pub(super) fn parameters(&self, slice: &Slice) -> u64 {
        match self.dense {
            true => slice.dense_parameters,
            false => u64::from(self.awake()) * slice.component_parameters,
        }
    }
}

/// A made-up model in the course of a run.
#[derive(Clone, Debug)]
pub struct Model {
    /// The run.
    pub run: Run,
    /// What never changes.
    pub slices: Vec<Slice>,
    /// What changes.
    pub standing: Vec<Standing>,
    /// Step of the next observation.
    pub step: u32,
    /// Fate of the last plan.
    pub last: Option<Outcome>,
    /// What the evaluators measured of the current state.
    pub metrics: Vec<Metric>,
    /// Every spectrum is multiplied by this.
    pub scale: f32,
    /// What is done to the spectra.
    pub(super) damage: Damage,
    families: Vec<Family>,
    /// Where each slice stood when the model was drawn: its statistics follow it.
    origin: Vec<u64>,
    /// Step of each slice's last change.
    changed: Vec<u32>,
    seed: u64,
}

impl Model {
    /// `count` slices of `rows` × `cols`, all dense, all of one family; half may stay awake, 6 steps.
    pub fn even(count: u32, rows: u32, cols: u32, family: Family, seed: u64) -> Model {
        Model::of((0..count).map(|_| (rows, cols, family)).collect(), 0.5, seed)
    }

    /// A model drawn at random: 1 to 24 slices of several sizes and families.
    pub fn random(seed: u64, case: u32) -> Model {
        let mut rng = spectra::rng(seed, ("families", case));
        match rng.random_bool(0.5) {
            true => Model::random_of(&[Family::ALL[rng.random_range(0..Family::ALL.len())]], seed, case),
            false => Model::random_of(&Family::ALL, seed, case),
        }
    }

    /// The same with spectra of these families; there must be one at least.
    pub(super) fn random_of(families: &[Family], seed: u64, case: u32) -> Model {
        let mut rng = spectra::rng(seed, ("model", case));
        let slices = (0..rng.random_range(1..=24))
            .map(|_| {
                let family = families[rng.random_range(0..families.len())];
                (rng.random_range(1..=12) * 8, rng.random_range(1..=12) * 8, family)
            })
            .collect();
        let mut model = Model::of(slices, rng.random_range(0.3..0.95), rng.random());
        model.run.steps = rng.random_range(1..=8);
        model
    }

    fn of(sizes: Vec<(u32, u32, Family)>, share: f64, seed: u64) -> Model {
        const KINDS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let slice = |(id, (rows, cols, _)): (usize, &(u32, u32, Family))| {
            let kind = KINDS[id % KINDS.len()];
            let room = if id % KINDS.len() < 4 { "self_attn" } else { "mlp" };
            let layer = (id / KINDS.len()) as u32;
            Slice {
                name: format!("model.layers.{layer}.{room}.{kind}"),
                layer,
                kind: kind.into(),
                group: id as u32,
                rows: *rows,
                cols: *cols,
                max_rank: *rows.min(cols),
                dense_parameters: u64::from(*rows) * u64::from(*cols),
                component_parameters: u64::from(*rows) + u64::from(*cols),
                attributes: vec![],
            }
        };
        let slices: Vec<Slice> = sizes.iter().enumerate().map(slice).collect();
        let all_awake = |s: &Slice| Standing { dense: true, asleep: vec![false; s.max_rank as usize], frozen: false };
        let parameters = slices.iter().map(|s| s.dense_parameters).sum();
        let budget = (share * parameters as f64) as u64;
        Model {
            run: Run { phase: "compress".into(), seed, steps: 6, parameters, budget, attributes: vec![] },
            standing: slices.iter().map(all_awake).collect(),
            step: 1,
            last: None,
            metrics: vec![],
            scale: 1.0,
            damage: Damage::None,
            families: sizes.iter().map(|s| s.2).collect(),
            origin: (0..slices.len() as u64).collect(),
            changed: vec![0; slices.len()],
            slices,
            seed,
        }
    }

    /// The same model with its slices in another order; also where each came from.
    pub(super) fn shuffled(&self) -> (Model, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.slices.len()).collect();
        order.shuffle(&mut spectra::rng(self.seed, "order"));
        let mut out = self.clone();
        for (to, &from) in order.iter().enumerate() {
            out.slices[to] = self.slices[from].clone();
            out.standing[to] = self.standing[from].clone();
            out.families[to] = self.families[from];
            out.origin[to] = self.origin[from];
            out.changed[to] = self.changed[from];
        }
        (out, order)
    }

    /// Puts random components of every slice to sleep, not the smallest ones.
    pub(super) fn scatter(&mut self) {
        let mut rng = spectra::rng(self.seed, "asleep");
        for standing in self.standing.iter_mut().filter(|s| s.asleep.len() > 1) {
            standing.dense = false;
            standing.asleep.iter_mut().for_each(|a| *a = rng.random_bool(0.4));
            // Something is awake, and a component larger than it sleeps.
            standing.asleep[0] = true;
            if let Some(last) = standing.asleep.last_mut() {
                *last = false;
            }
        }
    }

    /// Lets every slice keep its first `share` of components.
    pub(super) fn shrink(&mut self, share: f64) {
        for standing in &mut self.standing {
            let keep = ((share * standing.asleep.len() as f64) as usize).max(1);
            standing.dense = false;
            standing.asleep.iter_mut().enumerate().for_each(|(i, a)| *a = i >= keep);
        }
    }

    /// Parameters awake.
    pub fn awake(&self) -> u64 {
        self.standing.iter().zip(&self.slices).map(|(s, slice)| s.parameters(slice)).sum()
    }

    /// What a policy with these statistics is told.
    pub fn observe(&self, needs: &[String]) -> Observation {
        let mut seen = Observation {
            step: self.step,
            awake: self.awake(),
            metrics: self.metrics.clone(),
            last: self.last.clone(),
            ..Observation::default()
        };
        for (i, (slice, standing)) in self.slices.iter().zip(&self.standing).enumerate() {
            let parameters = standing.parameters(slice);
            seen.slices.push(SliceState {
                awake: standing.awake(),
                dense: standing.dense,
                dense_allowed: true,
                frozen: standing.frozen,
                dwell: self.step.saturating_sub(1 + self.changed[i]),
                parameters,
                bytes: 4 * parameters,
                parked_bytes: if standing.dense { 0 } else { 4 * (slice.dense_parameters.saturating_sub(parameters)) },
            });
        }
        let scattered = self.standing.iter().any(|s| s.asleep.windows(2).any(|w| w[0] && !w[1]));
        let needs: &[String] = if self.damage == Damage::Missing { &[] } else { needs };
        for (need, name) in needs.iter().enumerate() {
            for i in 0..self.slices.len() {
                let rank = self.slices[i].max_rank as usize;
                let drawn = spectra::statistic(name, self.families[i], rank, self.seed, self.origin[i]);
                let Some(mut values) = drawn else { continue };
                if name.starts_with("spectrum:") {
                    values.iter_mut().for_each(|v| *v *= self.scale);
                }
                self.damage.apply(&mut values);
                let (offset, len) = (seen.values.len() as u32, values.len() as u32);
                seen.series.push(Series { slice: i as u32, need: need as u32, offset, len });
                if scattered {
                    let flag = |k: usize| u8::from(self.standing[i].asleep.get(k) == Some(&true));
                    seen.asleep.extend((0..values.len()).map(flag));
                }
                seen.values.extend(values);
            }
        }
        seen
    }

    /// What shall be awake after a plan.
    ///
    /// # Errors
    /// The host's rule that the plan breaks.
    pub(super) fn resolve(
        &self,
        plan: &Plan,
        seen: &Observation,
        rules: &dyn PlanRules,
    ) -> Result<Vec<Standing>, String> {
        for request in &plan.requests {
            spectra::check_need(request)?;
        }
        let spectrum = |slice: u32, need: u32| {
            let s = seen.series.iter().find(|s| s.slice == slice && s.need == need)?;
            seen.values.get(s.offset as usize..(s.offset + s.len) as usize).map(<[f32]>::to_vec)
        };
        rules.resolve(plan, &self.slices, &self.standing, self.run.budget, &spectrum)
    }

    /// Energy that sleeps, in the metric that predicts the loss, as a rise of the loss.
    pub(super) fn rise(&self, standing: &[Standing]) -> f64 {
        let mut energy = 0.0;
        for (i, s) in standing.iter().enumerate() {
            let rank = s.asleep.len();
            let values = spectra::statistic("spectrum:fisher", self.families[i], rank, self.seed, self.origin[i]);
            let asleep = s.asleep.iter().zip(values.unwrap_or_default()).filter(|(a, _)| **a);
            energy += asleep.map(|(_, v)| f64::from(v).powi(2)).sum::<f64>();
        }
        // A thousandth: the numbers of a run, not of a ruined model.
        0.5e-3 * energy
    }

    /// Takes over a new state, as after a commit.
    pub(super) fn commit(&mut self, after: Vec<Standing>) {
        for ((old, new), changed) in self.standing.iter().zip(&after).zip(&mut self.changed) {
            if (old.dense, &old.asleep) != (new.dense, &new.asleep) {
                *changed = self.step;
            }
        }
        self.standing = after;
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for f in &self.families {
            if !names.contains(&f.name()) {
                names.push(f.name());
            }
        }
        let ranks = self.slices.iter().map(|s| s.max_rank);
        let (low, high) = (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0));
        let ranks = if low == high { low.to_string() } else { format!("{low} to {high}") };
        let budget = 100.0 * self.run.budget as f64 / self.run.parameters.max(1) as f64;
        let spectra = if names.is_empty() { "none".into() } else { names.join(", ") };
        format!(
            "{} slices of rank {ranks}, spectra: {spectra}; budget {budget:.0} %, {} steps",
            self.slices.len(),
            self.run.steps
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_case_comes_back_by_its_number() {
        let needs = ["spectrum:fisher".to_owned(), "trace:input".to_owned()];
        assert_eq!(Model::random(1, 3).observe(&needs), Model::random(1, 3).observe(&needs));
        assert_ne!(Model::random(1, 3).observe(&needs), Model::random(1, 4).observe(&needs));
        assert_ne!(Model::random(1, 3).observe(&needs), Model::random(2, 3).observe(&needs));
    }

    #[test]
    fn statistics_follow_their_slice() {
        let model = Model::random(5, 0);
        let (other, order) = model.shuffled();
        let needs = ["spectrum:fisher".to_owned()];
        let (a, b) = (model.observe(&needs), other.observe(&needs));
        let values = |o: &Observation, i: usize| {
            let s = o.series[i];
            o.values[s.offset as usize..(s.offset + s.len) as usize].to_vec()
        };
        for (to, &from) in order.iter().enumerate() {
            assert_eq!(values(&b, to), values(&a, from));
            assert_eq!(other.slices[to].name, model.slices[from].name);
        }
    }

    #[test]
    fn what_sleeps_is_counted_and_flagged() {
        let mut model = Model::even(2, 8, 6, Family::Flat, 1);
        assert_eq!(model.awake(), 96);
        model.shrink(0.5);
        assert_eq!(model.awake(), 2 * 3 * 14);
        assert!(model.observe(&["spectrum:fisher".into()]).asleep.is_empty());
        model.scatter();
        let seen = model.observe(&["spectrum:fisher".into()]);
        assert_eq!(seen.asleep.len(), seen.values.len());
        assert_eq!((seen.asleep[0], seen.asleep[5]), (1, 0));
        assert!(model.rise(&model.standing) > 0.0);
    }
}

//! What a policy is told at each step.

use crate::plan::Plan;
use crate::records::{Attribute, Metric, Outcome, Run, Series, Slice, SliceState};
use std::rc::Rc;

/// What the host tells a policy: the run, the slices as they are now, and the statistics asked for.
///
/// Singular values stay where the host put them: [`SliceView::spectrum`] is a view, not a copy.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Step, from 1.
    pub step: u32,
    /// Parameters awake in all slices.
    pub awake: u64,
    /// What the evaluators measured of the current state; empty before the first commit.
    pub metrics: Vec<Metric>,
    /// The fate of the last plan; none at the first step.
    pub last: Option<Outcome>,
    /// In a pipeline, the plan of the policies before this one, as ranks; the answer replaces it.
    pub proposed: Option<Plan>,
    /// More facts.
    pub attributes: Vec<Attribute>,
    pub(crate) run: Rc<Run>,
    pub(crate) slices: Rc<[Slice]>,
    pub(crate) states: Vec<SliceState>,
    pub(crate) needs: Rc<[String]>,
    pub(crate) series: Vec<Series>,
    pub(crate) values: Vec<f32>,
    pub(crate) asleep: Vec<u8>,
}

impl Observation {
    /// The run this step belongs to.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Every slice, in the host's order; a slice's id is its place in it.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = SliceView<'_>> + DoubleEndedIterator {
        let n = self.slices.len().min(self.states.len());
        (0..n).map(|id| SliceView { id, meta: &self.slices[id], state: &self.states[id], seen: self })
    }

    /// One slice by id.
    pub fn slice(&self, id: usize) -> Option<SliceView<'_>> {
        Some(SliceView { id, meta: self.slices.get(id)?, state: self.states.get(id)?, seen: self })
    }

    /// Singular values of one slice in a metric (`plain`, `input` or `fisher`), largest first;
    /// empty where the host sent none, because the policy's `needs` do not name `spectrum:<metric>`.
    pub fn spectrum<'a>(&'a self, slice: SliceView<'_>, metric: &str) -> &'a [f32] {
        self.range(slice.id, |need| need.strip_prefix("spectrum:") == Some(metric))
            .and_then(|r| self.values.get(r))
            .unwrap_or(&[])
    }

    /// Any statistic of one slice by its full name, such as `trace:input` or `sensitivity:0.5`;
    /// empty where it was not asked for.
    pub fn statistic<'a>(&'a self, slice: SliceView<'_>, name: &str) -> &'a [f32] {
        self.range(slice.id, |need| need == name).and_then(|r| self.values.get(r)).unwrap_or(&[])
    }

    fn range(&self, slice: usize, is_it: impl Fn(&str) -> bool) -> Option<std::ops::Range<usize>> {
        let need = self.needs.iter().position(|n| is_it(n))?;
        let matches = |s: &Series| s.slice as usize == slice && s.need as usize == need;
        // The host usually sends them in the order of needs, then slices: look there first.
        let guess = self.series.get(need * self.slices.len() + slice).filter(|s| matches(s));
        let s = guess.or_else(|| self.series.iter().find(|s| matches(s)))?;
        Some(s.offset as usize..(s.offset as usize).checked_add(s.len as usize)?)
    }
}

/// One slice as it is now.
#[derive(Clone, Copy, Debug)]
pub struct SliceView<'a> {
    id: usize,
    meta: &'a Slice,
    state: &'a SliceState,
    seen: &'a Observation,
}

impl<'a> SliceView<'a> {
    /// Its place in the host's list.
    pub fn id(self) -> usize {
        self.id
    }

    /// Everything that never changes about it.
    pub fn meta(self) -> &'a Slice {
        self.meta
    }

    /// Everything that changes about it.
    pub fn state(self) -> &'a SliceState {
        self.state
    }

    /// Name in the checkpoint.
    pub fn name(self) -> &'a str {
        &self.meta.name
    }

    /// `q_proj`, `down_proj`, ...
    pub fn kind(self) -> &'a str {
        &self.meta.kind
    }

    /// Layer number.
    pub fn layer(self) -> usize {
        self.meta.layer as usize
    }

    /// Output width.
    pub fn rows(self) -> usize {
        self.meta.rows as usize
    }

    /// Input width.
    pub fn cols(self) -> usize {
        self.meta.cols as usize
    }

    /// The number of components.
    pub fn max_rank(self) -> usize {
        self.meta.max_rank as usize
    }

    /// Components awake now.
    pub fn awake(self) -> usize {
        self.state.awake as usize
    }

    /// Runs on the base's own weights.
    pub fn is_dense(self) -> bool {
        self.state.dense
    }

    /// The host accepts no change of it.
    pub fn is_frozen(self) -> bool {
        self.state.frozen
    }

    /// Parameters of factors of this rank.
    pub fn parameters(self, rank: usize) -> u64 {
        self.meta.component_parameters.saturating_mul(rank as u64)
    }

    /// Parameters of the dense slice.
    pub fn dense_parameters(self) -> u64 {
        self.meta.dense_parameters
    }

    /// Whether factors of this rank are smaller than the dense slice.
    pub fn saves(self, rank: usize) -> bool {
        self.parameters(rank) < self.dense_parameters()
    }

    /// Singular values in a metric (`plain`, `input` or `fisher`), largest first, sleeping ones
    /// included; empty where the host sent none.
    ///
    /// In `fisher`, half the squared values of what sleeps predict the rise of the loss in nats per
    /// token.
    pub fn spectrum(self, metric: &str) -> &'a [f32] {
        self.seen.spectrum(self, metric)
    }

    /// Any statistic by its full name, such as `trace:input`; empty where it was not asked for.
    pub fn statistic(self, name: &str) -> &'a [f32] {
        self.seen.statistic(self, name)
    }

    /// Whether a component sleeps, by its place in a metric's spectrum.
    pub fn is_asleep(self, metric: &str, component: usize) -> bool {
        let is_it = |need: &str| need.strip_prefix("spectrum:") == Some(metric);
        let flag = self.seen.range(self.id, is_it).and_then(|r| self.seen.asleep.get(r.start + component));
        match flag {
            Some(&flag) => flag != 0,
            // No flags: the awake components are the largest ones.
            None => component >= self.awake(),
        }
    }
}

//! What a policy answers.

use crate::observation::SliceView;
use crate::records::Attribute;

/// What to do with one slice.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Exactly this many awake, the largest first.
    SetRank(u32),
    /// Put the n smallest awake components to sleep.
    SleepN(u32),
    /// Wake the n largest sleeping components.
    WakeN(u32),
    /// Put these components to sleep (numbered by size, largest 0).
    Sleep(Vec<u32>),
    /// Wake these components.
    Wake(Vec<u32>),
    /// Back to the base's own weights.
    Dense,
    /// Accept no change from now on.
    Freeze,
    /// Accept changes again.
    Thaw,
}

/// One change of one slice, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// Slice id.
    pub slice: SliceId,
    /// The change.
    pub change: Change,
    /// For people; it is shown and journalled.
    pub reason: String,
}

/// A slice's place in the host's list; a [`SliceView`] or a number turns into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceId(pub u32);

impl From<SliceView<'_>> for SliceId {
    fn from(slice: SliceView<'_>) -> SliceId {
        SliceId::from(slice.id())
    }
}

impl From<usize> for SliceId {
    fn from(id: usize) -> SliceId {
        SliceId(small(id))
    }
}

/// One rule over all slices, resolved by the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// `plain`, `input` or `fisher`; must be among the policy's needs as `spectrum:<metric>`.
    pub metric: String,
    /// Lowest value² per parameter that stays awake.
    pub level: f64,
    /// For people.
    pub reason: String,
}

/// What should change. An empty plan holds everything as it is.
///
/// One bad action refuses the whole plan, so a slice should appear once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Changes, slice by slice.
    pub actions: Vec<Action>,
    /// Applied before the actions.
    pub threshold: Option<Threshold>,
    /// Predicted rise of the loss over the base, nats per token.
    pub predicted: Option<f64>,
    /// Statistics wanted at the next observation, beyond the needs.
    pub requests: Vec<String>,
    /// Ends the run after this step; the text says why.
    pub stop: Option<String>,
    /// More facts, for the journal.
    pub attributes: Vec<Attribute>,
}

impl Plan {
    /// A plan without actions.
    pub fn new() -> Plan {
        Plan::default()
    }

    /// Exactly `rank` components awake, the largest first.
    pub fn set_rank(&mut self, slice: impl Into<SliceId>, rank: usize, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::SetRank(small(rank)), why)
    }

    /// Puts the `n` smallest awake components to sleep.
    pub fn sleep(&mut self, slice: impl Into<SliceId>, n: usize, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::SleepN(small(n)), why)
    }

    /// Wakes the `n` largest sleeping components.
    pub fn wake(&mut self, slice: impl Into<SliceId>, n: usize, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::WakeN(small(n)), why)
    }

    /// Puts these components to sleep (numbered by size, largest 0).
    pub fn sleep_these(
        &mut self,
        slice: impl Into<SliceId>,
        components: impl IntoIterator<Item = usize>,
        why: impl Into<String>,
    ) -> &mut Plan {
        self.act(slice, Change::Sleep(components.into_iter().map(small).collect()), why)
    }

    /// Wakes these components (numbered by size, largest 0).
    pub fn wake_these(
        &mut self,
        slice: impl Into<SliceId>,
        components: impl IntoIterator<Item = usize>,
        why: impl Into<String>,
    ) -> &mut Plan {
        self.act(slice, Change::Wake(components.into_iter().map(small).collect()), why)
    }

    /// Back to the base's own weights.
    pub fn dense(&mut self, slice: impl Into<SliceId>, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::Dense, why)
    }

    /// No change of this slice is accepted from now on.
    pub fn freeze(&mut self, slice: impl Into<SliceId>, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::Freeze, why)
    }

    /// Changes of this slice are accepted again.
    pub fn thaw(&mut self, slice: impl Into<SliceId>, why: impl Into<String>) -> &mut Plan {
        self.act(slice, Change::Thaw, why)
    }

    /// Lets the host keep, over all slices, what holds at least `level` of value² per parameter.
    pub fn threshold(&mut self, metric: impl Into<String>, level: f64, why: impl Into<String>) -> &mut Plan {
        self.threshold = Some(Threshold { metric: metric.into(), level, reason: why.into() });
        self
    }

    /// Predicts the rise of the loss over the base, in nats per token.
    pub fn predict(&mut self, loss_increase: f64) -> &mut Plan {
        self.predicted = Some(loss_increase);
        self
    }

    /// Asks for a statistic at the next observation only, such as `spectrum:plain`.
    pub fn request(&mut self, statistic: impl Into<String>) -> &mut Plan {
        self.requests.push(statistic.into());
        self
    }

    /// Ends the run after this step.
    pub fn stop(&mut self, why: impl Into<String>) -> &mut Plan {
        self.stop = Some(why.into());
        self
    }

    fn act(&mut self, slice: impl Into<SliceId>, change: Change, why: impl Into<String>) -> &mut Plan {
        self.actions.push(Action { slice: slice.into(), change, reason: why.into() });
        self
    }
}

impl From<u32> for SliceId {
    fn from(id: u32) -> SliceId {
        SliceId(id)
    }
}

/// The contract counts in 32 bits; nothing real reaches the end of it.
fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

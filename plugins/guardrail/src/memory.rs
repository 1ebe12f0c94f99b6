//! What the policy remembers from step to step, and its form in a snapshot.

/// Doublings of the patience at most.
const REGRETS: u32 = 16;

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Observations in a row with room.
    calm: u32,
    /// Step of the last waking.
    woken: Option<u32>,
    /// Wakings that exceeded a limit.
    regrets: u32,
    /// How often a step was rejected, and so halved.
    pub halvings: u32,
}

impl Memory {
    /// The last step was taken back.
    pub fn rejected(&mut self) {
        self.halvings += 1;
        self.woken = None;
    }

    /// A limit is exceeded: right after a waking that is regretted.
    pub fn exceeded(&mut self, step: u32) {
        self.calm = 0;
        if self.woken.take().is_some_and(|woken| woken + 1 >= step) {
            self.regrets = (self.regrets + 1).min(REGRETS);
        }
    }

    /// Whether there has been room for long enough.
    pub fn has_room(&mut self, now: bool, patience: u32) -> bool {
        self.calm = if now { self.calm.saturating_add(1) } else { 0 };
        u64::from(self.calm) >= u64::from(patience) << self.regrets
    }

    /// Rank wakes in this step.
    pub fn woke(&mut self, step: u32) {
        (self.calm, self.woken) = (0, Some(step));
    }

    /// For a snapshot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let woken = self.woken.map_or("-".into(), |w| w.to_string());
        format!("1 {} {woken} {} {}", self.calm, self.regrets, self.halvings).into_bytes()
    }

    /// From a snapshot.
    ///
    /// # Errors
    /// It is not one of this policy.
    pub fn from_bytes(bytes: &[u8]) -> Result<Memory, String> {
        let read = || {
            let text = std::str::from_utf8(bytes).ok()?;
            let ["1", calm, woken, regrets, halvings] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
            let woken = if woken == "-" { None } else { Some(woken.parse().ok()?) };
            let regrets = regrets.parse().ok().filter(|r| *r <= REGRETS)?;
            Some(Memory { calm: calm.parse().ok()?, woken, regrets, halvings: halvings.parse().ok()? })
        };
        read().ok_or_else(|| "the snapshot is not one of this version of the guardrail policy".into())
    }
}

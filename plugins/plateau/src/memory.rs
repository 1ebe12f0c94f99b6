//! What the policy remembers from step to step, and its form in a snapshot.

/// One entry a slice where it is a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The loss when it was last looked at.
    pub loss: Option<f64>,
    /// How often the notch was halved.
    pub halvings: u32,
    /// Components the last notch put to sleep.
    pub slept: Vec<usize>,
    /// Ranks that had to wake: not to be gone below again.
    pub floor: Vec<usize>,
}

impl Memory {
    /// Nothing yet.
    pub fn new(slices: usize) -> Memory {
        Memory { slept: vec![0; slices], floor: vec![0; slices], ..Memory::default() }
    }

    /// For how many slices.
    pub fn slices(&self) -> usize {
        self.floor.len()
    }

    /// The last notch was too large and is no more.
    pub fn took_back(&mut self) {
        self.slept.fill(0);
        self.halvings += 1;
    }

    /// For a snapshot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let list = |ranks: &[usize]| ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let loss = self.loss.map_or("-".into(), |l| l.to_string());
        format!("1 {loss} {} {} {}", self.halvings, list(&self.slept), list(&self.floor)).into_bytes()
    }

    /// From a snapshot of a run with so many slices.
    ///
    /// # Errors
    /// It is not one of this policy, or of another run.
    pub fn from_bytes(bytes: &[u8], slices: usize) -> Result<Memory, String> {
        let read = || {
            let text = std::str::from_utf8(bytes).ok()?;
            let ["1", loss, halvings, slept, floor] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
            let list = |t: &str| {
                t.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().ok()).collect::<Option<Vec<usize>>>()
            };
            let loss = if loss == "-" { None } else { Some(loss.parse::<f64>().ok()?) };
            let memory = Memory { loss, halvings: halvings.parse().ok()?, slept: list(slept)?, floor: list(floor)? };
            (memory.slept.len() == slices && memory.slices() == slices).then_some(memory)
        };
        read().ok_or_else(|| {
            format!("the snapshot is not one of this version of the plateau policy, for {slices} slices")
        })
    }
}

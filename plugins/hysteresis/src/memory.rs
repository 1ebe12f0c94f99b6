//! What the policy remembers from step to step, and its form in a snapshot.

use plastic_plugin::goal::Goal;

/// The aim, and one average a slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// How many parameters are aimed at.
    pub goal: Goal,
    /// Moving averages of the wanted ranks; none before the first step.
    pub averages: Vec<Option<f64>>,
}

impl Memory {
    /// Nothing yet.
    pub fn new(slices: usize) -> Memory {
        Memory { averages: vec![None; slices], ..Memory::default() }
    }

    /// For a snapshot: the averages in a line, then the goal.
    pub fn to_bytes(&self) -> Vec<u8> {
        let number = |n: &Option<f64>| n.map_or("-".into(), |n| n.to_string());
        let averages: Vec<String> = self.averages.iter().map(number).collect();
        let mut bytes = format!("1 {}\n", averages.join(",")).into_bytes();
        bytes.extend(self.goal.to_bytes());
        bytes
    }

    /// From a snapshot of a run with so many slices.
    ///
    /// # Errors
    /// It is not one of this policy, or of another run.
    pub fn from_bytes(bytes: &[u8], slices: usize) -> Result<Memory, String> {
        let bad = || format!("the snapshot is not one of this version of the hysteresis policy, for {slices} slices");
        let text = std::str::from_utf8(bytes).map_err(|_| bad())?;
        let (averages, goal) = text.strip_prefix("1 ").and_then(|t| t.split_once('\n')).ok_or_else(bad)?;
        let number = |t: &str| match t {
            "-" => Ok(None),
            t => t.parse::<f64>().ok().filter(|n| n.is_finite()).map(Some).ok_or_else(bad),
        };
        let averages = averages.split(',').filter(|t| !t.is_empty()).map(number).collect::<Result<Vec<_>, _>>()?;
        match averages.len() == slices {
            true => Ok(Memory { goal: Goal::from_bytes(goal.as_bytes())?, averages }),
            false => Err(bad()),
        }
    }
}

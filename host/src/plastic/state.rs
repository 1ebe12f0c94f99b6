//! What is awake: the whole state of an elastic model, one entry a slice.

use serde::{Deserialize, Serialize};

/// Which components of one slice are awake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Awake {
    /// The base's own weights.
    Dense(DenseWord),
    /// The first so many components.
    First(u32),
    /// These components, ascending, where they are not the first ones.
    These(Vec<u32>),
}

/// The word `"dense"` in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DenseWord {
    /// The only value.
    Dense,
}

/// A slice on the base's own weights.
pub const DENSE: Awake = Awake::Dense(DenseWord::Dense);

impl Awake {
    /// From ascending, distinct component numbers.
    pub fn from_components(components: Vec<u32>) -> Awake {
        match components.last() {
            None => Awake::First(0),
            Some(&last) if last as usize + 1 == components.len() => Awake::First(last + 1),
            Some(_) => Awake::These(components),
        }
    }

    /// Whether the slice runs on the base's own weights.
    pub fn is_dense(&self) -> bool {
        matches!(self, Awake::Dense(_))
    }

    /// Number of awake components of a slice that has `max_rank`.
    pub fn rank(&self, max_rank: u32) -> u32 {
        match self {
            Awake::Dense(_) => max_rank,
            Awake::First(r) => *r,
            Awake::These(c) => c.len() as u32,
        }
    }

    /// The awake components, ascending.
    pub fn components(&self, max_rank: u32) -> Vec<u32> {
        match self {
            Awake::Dense(_) => (0..max_rank).collect(),
            Awake::First(r) => (0..*r).collect(),
            Awake::These(c) => c.clone(),
        }
    }

    /// Parameters awake in a slice of `rows` × `cols`.
    pub fn parameters(&self, rows: u32, cols: u32) -> u64 {
        match self {
            Awake::Dense(_) => u64::from(rows) * u64::from(cols),
            other => u64::from(other.rank(rows.min(cols))) * (u64::from(rows) + u64::from(cols)),
        }
    }

    /// Whether the state can be that of a slice with `max_rank` components.
    pub fn is_valid(&self, max_rank: u32) -> bool {
        match self {
            Awake::Dense(_) => true,
            Awake::First(r) => *r <= max_rank,
            Awake::These(c) => c.windows(2).all(|w| w[0] < w[1]) && c.last().is_none_or(|&l| l < max_rank),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn journal_form_is_short_and_reads_back() {
        let state = vec![DENSE, Awake::First(7), Awake::These(vec![0, 2])];
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(text, r#"["dense",7,[0,2]]"#);
        assert_eq!(serde_json::from_str::<Vec<Awake>>(&text).unwrap(), state);
    }

    proptest! {
        #[test]
        fn components_round_trip(set in proptest::collection::btree_set(0u32..40, 0..40)) {
            let list: Vec<u32> = set.into_iter().collect();
            let awake = Awake::from_components(list.clone());
            prop_assert_eq!(awake.components(40), list.clone());
            prop_assert_eq!(awake.rank(40) as usize, list.len());
            prop_assert!(awake.is_valid(40));
        }
    }
}

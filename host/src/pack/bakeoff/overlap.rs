//! Whether two texts share a passage: a held-out text that was trained on measures memory, not skill.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Words in a row that are too many to be a coincidence.
const PASSAGE: usize = 24;

/// What two texts share.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlap {
    /// Rows of the evaluation text that have a passage of the training text, or are rows of it.
    pub rows: usize,
    /// Line of the first of them.
    pub line: usize,
    /// How that passage begins.
    pub passage: String,
}

/// Looks for rows of `eval` that share [`PASSAGE`] words in a row with a row of `train`, or where they are shorter,
/// are the same. Spaces and case do not count.
pub fn find(train: &[(usize, String)], eval: &[(usize, String)]) -> Option<Overlap> {
    let mut known: HashSet<u64> = HashSet::new();
    for (_, text) in train {
        known.extend(passages(text).map(|(hash, _)| hash));
    }
    let shared = eval.iter().filter_map(|(line, text)| {
        let (_, at) = passages(text).find(|(hash, _)| known.contains(hash))?;
        let begins: Vec<&str> = text.split_whitespace().skip(at).take(8).collect();
        Some((*line, begins.join(" ")))
    });
    let shared: Vec<(usize, String)> = shared.collect();
    let (line, passage) = shared.first()?.clone();
    Some(Overlap { rows: shared.len(), line, passage })
}

/// Hashes of all runs of words, with the place of each; of a shorter text, of all its words.
fn passages(text: &str) -> impl Iterator<Item = (u64, usize)> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let length = PASSAGE.min(words.len()).max(1);
    let hashes: Vec<(u64, usize)> = (words.windows(length).enumerate())
        .map(|(at, run)| {
            let mut hasher = DefaultHasher::new();
            run.hash(&mut hasher);
            (hasher.finish(), at)
        })
        .collect();
    hashes.into_iter()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rows(texts: &[&str]) -> Vec<(usize, String)> {
        texts.iter().enumerate().map(|(i, t)| (i + 1, (*t).to_owned())).collect()
    }

    #[test]
    fn shared_passages_are_found_wherever_they_stand() {
        let words: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
        let train = rows(&[&words.join(" "), "short row"]);
        let inside = format!("other words first {}", words[20..50].join("\n").to_uppercase());
        let found = find(&train, &rows(&["new", &inside])).unwrap();
        assert_eq!((found.rows, found.line), (1, 2));
        assert!(found.passage.starts_with("W20 W21"), "{found:?}");
        assert_eq!(find(&train, &rows(&["Short  row"])).unwrap().rows, 1);
        assert_eq!(find(&train, &rows(&["a short row", &words[0..23].join(" ")])), None);
    }
}

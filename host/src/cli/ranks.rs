//! Ranks given by hand: a JSON file, or pairs on the command line.

use crate::model::{Level, Levels};
use crate::plugin::contract::Slice;
use anyhow::{Context, bail};
use std::path::Path;

/// Most bytes of a file of ranks.
const MAX_FILE: u64 = 16 << 20;

/// The level of every slice, from `text`: the name of a JSON file, or pairs such as `q_proj:64,*:dense`. A pattern is
/// the whole name of a slice, its last part, or a glob over the whole name; the first that matches counts. A rank of 0
/// is a slice without repair where components repair one, and no slice otherwise.
///
/// # Errors
/// When the file or a pair cannot be read, a pattern matches nothing, a rank is too high or a slice is left out.
pub fn read(text: &str, slices: &[Slice], repairs: bool) -> anyhow::Result<Levels> {
    let pairs = match Path::new(text).is_file() {
        true => from_file(Path::new(text))?,
        false => from_pairs(text)?,
    };
    let mut out = Levels::new();
    for (pattern, level) in pairs {
        if level == Level::Rank(0) && !repairs {
            bail!("--ranks: {pattern}:0 would take slices out of the model; give them 1 or more, or dense");
        }
        let glob = globset::Glob::new(&pattern).with_context(|| format!("--ranks {pattern:?}"))?.compile_matcher();
        let hit = |s: &&Slice| {
            s.name == pattern
                || s.kind == pattern
                || s.kind.strip_suffix("_proj") == Some(&pattern)
                || glob.is_match(&s.name)
        };
        let mut any = false;
        for s in slices.iter().filter(hit) {
            any = true;
            if let Level::Rank(r) = level
                && r > s.max_rank
            {
                bail!("--ranks: {} has {} components, and {pattern} asks for {r}", s.name, s.max_rank);
            }
            out.entry(s.name.clone()).or_insert(level);
        }
        if !any {
            let example = slices.first().map_or("", |s| &s.name);
            bail!("--ranks: {pattern} matches no slice; names look like {example}");
        }
    }
    if let Some(s) = slices.iter().find(|s| !out.contains_key(&s.name)) {
        bail!("--ranks: nothing is said about {}; end with `*:dense` to leave the rest as it is", s.name);
    }
    Ok(out)
}

fn from_pairs(text: &str) -> anyhow::Result<Vec<(String, Level)>> {
    let pair = |part: &str| {
        let (name, rank) = part
            .trim()
            .rsplit_once(':')
            .with_context(|| format!("--ranks {text:?}: is no file and holds no pairs such as q_proj:64,*:dense"))?;
        let level = match rank {
            "dense" => Level::Dense,
            n => Level::Rank(n.parse().with_context(|| format!("--ranks {part:?}: a rank is a number, or dense"))?),
        };
        Ok((name.to_owned(), level))
    };
    text.split(',').map(pair).collect()
}

fn from_file(path: &Path) -> anyhow::Result<Vec<(String, Level)>> {
    let bytes = crate::atomic::read_bounded(path, MAX_FILE).with_context(|| path.display().to_string())?;
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: expected a JSON object of names and ranks", path.display()))?;
    let level = |(name, value): (String, serde_json::Value)| {
        let rank = value.as_u64().and_then(|n| u32::try_from(n).ok()).map(Level::Rank);
        let level = rank.or_else(|| (value == "dense").then_some(Level::Dense));
        let level =
            level.with_context(|| format!("{}: {name} is {value}; expected a rank, or \"dense\"", path.display()))?;
        Ok((name, level))
    };
    map.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn slices() -> Vec<Slice> {
        let one = |name: &str, kind: &str| Slice {
            name: name.into(),
            layer: 0,
            kind: kind.into(),
            group: 0,
            rows: 8,
            cols: 8,
            max_rank: 8,
            dense_parameters: 64,
            component_parameters: 16,
            attributes: Vec::new(),
        };
        vec![one("model.layers.0.self_attn.q_proj", "q_proj"), one("model.layers.1.mlp.up_proj", "up_proj")]
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let l = read("q:4,*:dense", &slices(), false).unwrap();
        assert_eq!(l["model.layers.0.self_attn.q_proj"], Level::Rank(4));
        assert_eq!(l["model.layers.1.mlp.up_proj"], Level::Dense);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.json");
        std::fs::write(&file, r#"{"model.layers.1.*": 2, "q_proj": "dense"}"#).unwrap();
        let l = read(file.to_str().unwrap(), &slices(), false).unwrap();
        assert_eq!(l["model.layers.1.mlp.up_proj"], Level::Rank(2));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |t: &str| read(t, &slices(), false).unwrap_err().to_string();
        assert!(error("q:9,*:dense").contains("8 components"));
        assert!(error("q:4").contains("nothing is said about"));
        assert!(error("z_proj:1,*:dense").contains("matches no slice"));
        assert!(error("nothing").contains("no pairs"));
        assert!(error("q:0,*:dense").contains("1 or more"));
        assert!(error("q:x").contains("a rank is a number"));
    }
}

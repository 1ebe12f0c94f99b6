//! Which slices get an adapter, of what rank and strength.

use super::super::error::{Error, Result};
use super::super::format::Profile;
use super::super::key;
use super::options::Options;
use crate::model::{Config, SliceMeta};

/// A slice that gets an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Position in [`crate::model::Model::slices`].
    pub position: usize,
    /// Key in the pack.
    pub key: String,
    /// Layer.
    pub layer: usize,
    /// Slices of one group read the same input.
    pub group: u32,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Components.
    pub rank: usize,
    /// Strength: alpha / r times the update.
    pub alpha: f32,
}

/// The default rank of a slice: the rank asked for; for k and v, whose outputs are narrower under grouped
/// queries, that share of it, at least 2, rounded up to a rank of the profile (the rule of mlx-plastic-rank).
pub fn default_rank(kind: &str, rank: u32, hidden: usize, kv_hidden: usize, profile: Profile) -> u32 {
    if !matches!(kind, "k_proj" | "v_proj") || kv_hidden == hidden {
        return rank;
    }
    let share = f64::from(rank) * kv_hidden as f64 / hidden.max(1) as f64;
    // Half to even, as Python rounds.
    let wanted = (share.max(2.0)).round_ties_even() as u32;
    let ladder = profile.ladder();
    let snapped = ladder.iter().find(|r| **r >= wanted).or(ladder.last()).copied().unwrap_or(wanted);
    snapped.min(rank.max(2))
}

/// The slices that the options choose, in the order of the model.
///
/// # Errors
/// When a pattern is none or matches nothing, or a rank is larger than its slice.
pub fn choose(options: &Options, config: &Config, slices: &[SliceMeta]) -> Result<Vec<Target>> {
    let kv_hidden = config.num_key_value_heads * config.head_dim;
    let matches = |pattern: &str, s: &SliceMeta| key::matches(pattern, s).map_err(Error::Other);
    let known = || {
        let mut kinds: Vec<&str> = slices.iter().filter(|s| s.layer == 0).map(|s| s.kind.as_str()).collect();
        kinds.dedup();
        format!("this model has {} in layers 0 to {}", kinds.join(", "), slices.last().map_or(0, |s| s.layer))
    };
    for pattern in &options.layers {
        let mut any = false;
        for s in slices {
            any |= matches(pattern, s)?;
        }
        if !any {
            return Err(Error::Other(format!("--layers {pattern}: no slice is called so; {}", known())));
        }
    }
    let mut out = Vec::new();
    for (position, s) in slices.iter().enumerate() {
        let mut chosen = false;
        for pattern in &options.layers {
            chosen |= matches(pattern, s)?;
        }
        if !chosen {
            continue;
        }
        let mut rank = default_rank(&s.kind, options.rank, config.hidden_size, kv_hidden, options.profile);
        for rule in &options.ranks {
            if matches(&rule.slices, s)? {
                rank = rule.value;
            }
        }
        rank = rank.max(options.min_rank);
        if rank > s.rows.min(s.cols) {
            return Err(Error::Other(format!(
                "{}: rank {rank} is more than the {} it can have; lower --rank or --rank-map",
                s.name,
                s.rows.min(s.cols)
            )));
        }
        let mut alpha = match options.alpha {
            None => 2.0 * rank as f32,
            Some(alpha) => alpha * rank as f32 / options.rank as f32,
        };
        for rule in &options.alphas {
            if matches(&rule.slices, s)? {
                alpha = rule.value;
            }
        }
        if options.rslora {
            // A pack's scale is alpha / rank; this alpha gives alpha / sqrt(rank).
            alpha *= (rank as f32).sqrt();
        }
        out.push(Target {
            position,
            key: key::of_slice(&s.name).unwrap_or_default(),
            layer: s.layer as usize,
            group: s.group,
            rows: s.rows as usize,
            cols: s.cols as usize,
            rank: rank as usize,
            alpha,
        });
    }
    for (flag, pattern) in options
        .ranks
        .iter()
        .map(|r| ("--rank-map", &r.slices))
        .chain(options.alphas.iter().map(|r| ("--alpha-map", &r.slices)))
    {
        let mut any = false;
        for t in &out {
            any |= matches(pattern, &slices[t.position])?;
        }
        if !any {
            return Err(Error::Other(format!("{flag} {pattern}: none of the chosen slices is called so; {}", known())));
        }
    }
    if out.is_empty() {
        return Err(Error::Other(format!("--layers: no slice is chosen; {}", known())));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_heads_get_their_share_of_the_rank() {
        // hidden 576, 3 of 9 heads of 64.
        assert_eq!(default_rank("q_proj", 8, 576, 192, Profile::Lite), 8);
        assert_eq!(default_rank("k_proj", 8, 576, 192, Profile::Lite), 4);
        assert_eq!(default_rank("v_proj", 4, 576, 192, Profile::Lite), 2);
        assert_eq!(default_rank("v_proj", 16, 2560, 1024, Profile::Heavy), 8);
        assert_eq!(default_rank("k_proj", 3, 64, 64, Profile::Lite), 3, "no groups, no rounding");
    }

    /// Cases of the Python program for k and v at ranks of its own.
    #[test]
    #[allow(clippy::unwrap_used, reason = "tests")]
    fn grouped_ranks_are_those_of_the_python_program() {
        let golden = super::super::super::golden_tests::golden();
        let number = |c: &serde_json::Value, name: &str| c[name].as_u64().unwrap() as usize;
        let mut seen = 0;
        for c in golden["default_rank"]["cases"].as_array().unwrap() {
            let (kind, rank) = (c["kind"].as_str().unwrap(), number(c, "base_rank") as u32);
            let (hidden, kv) = (number(c, "hidden_size"), number(c, "kv_hidden"));
            if matches!(kind, "k" | "v") && rank <= 8 && kv < hidden {
                let ours = default_rank(&format!("{kind}_proj"), rank, hidden, kv, Profile::Lite);
                assert_eq!(ours as usize, number(c, "rank"), "{c}");
                seen += 1;
            }
        }
        assert!(seen > 8, "{seen}");
    }
}

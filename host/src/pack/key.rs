//! Names of adapters: `blocks.<layer>.attn.q_proj` in a pack, `model.layers.<layer>.self_attn.q_proj` in a model.
//!
//! The pack's names are those of mlx-plastic-rank, so that its packs are read as they are.

use crate::model::SliceMeta;

/// The adapter key of a slice, such as `blocks.3.attn.q_proj`.
pub fn of_slice(slice: &str) -> Option<String> {
    let (layer, module) = slice.strip_prefix("model.layers.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let module = match module.split_once('.')? {
        ("self_attn", name) => format!("attn.{name}"),
        ("mlp", name) => format!("mlp.{name}"),
        _ => return None,
    };
    Some(format!("blocks.{layer}.{module}"))
}

/// The slice an adapter key means, such as `model.layers.3.self_attn.q_proj`.
pub fn to_slice(key: &str) -> Option<String> {
    let (layer, module) = key.strip_prefix("blocks.")?.split_once('.')?;
    // One spelling a slice: no sign, no leading zero.
    let number: u32 = layer.parse().ok()?;
    if number.to_string() != layer {
        return None;
    }
    let module = match module.split_once('.')? {
        ("attn", name) if is_name(name) => format!("self_attn.{name}"),
        ("mlp", name) if is_name(name) => format!("mlp.{name}"),
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}"))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Layer of an adapter key.
pub fn layer(key: &str) -> Option<u32> {
    key.strip_prefix("blocks.")?.split_once('.')?.0.parse().ok()
}

/// What an adapter key targets in its layer, such as `attn.q_proj`.
pub fn target(key: &str) -> &str {
    key.splitn(3, '.').nth(2).unwrap_or(key)
}

/// Order of keys: by layer, then by name.
pub fn order(a: &str, b: &str) -> std::cmp::Ordering {
    layer(a).cmp(&layer(b)).then_with(|| a.cmp(b))
}

/// Whether a pattern of a command line means a slice: its name or key, the end of one (`attn.q_proj`, `q_proj`),
/// the first letter of an attention projection (`q`, `k`, `v`, `o`), or a glob over name or key.
///
/// # Errors
/// When the pattern is no glob.
pub fn matches(pattern: &str, slice: &SliceMeta) -> Result<bool, String> {
    let key = of_slice(&slice.name).unwrap_or_default();
    let short = slice.kind.strip_suffix("_proj").filter(|k| k.len() == 1);
    if [slice.name.as_str(), key.as_str(), target(&key), slice.kind.as_str()].contains(&pattern)
        || short == Some(pattern)
    {
        return Ok(true);
    }
    if !pattern.contains(['*', '?', '[', '{']) {
        return Ok(false);
    }
    let glob = globset::Glob::new(pattern).map_err(|e| format!("{pattern}: no pattern ({})", e.kind()))?;
    let glob = glob.compile_matcher();
    Ok([slice.name.as_str(), key.as_str(), target(&key)].iter().any(|name| glob.is_match(name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn keys_and_slices_are_one_to_one() {
        for (key, slice) in [
            ("blocks.3.attn.q_proj", "model.layers.3.self_attn.q_proj"),
            ("blocks.12.mlp.down_proj", "model.layers.12.mlp.down_proj"),
        ] {
            assert_eq!(of_slice(slice).unwrap(), key);
            assert_eq!(to_slice(key).unwrap(), slice);
        }
        for bad in
            ["blocks.03.attn.q_proj", "blocks.x.attn.q", "blocks.1.attn", "blocks.1.attn.q/../x", "layers.1.attn.q"]
        {
            assert_eq!(to_slice(bad), None, "{bad}");
        }
        assert_eq!(target("blocks.3.attn.q_proj"), "attn.q_proj");
        assert!(order("blocks.2.attn.q_proj", "blocks.10.attn.k_proj").is_lt());
    }

    #[test]
    fn patterns_mean_what_people_write() {
        let slice = SliceMeta {
            name: "model.layers.3.self_attn.q_proj".into(),
            layer: 3,
            kind: "q_proj".into(),
            group: 12,
            rows: 4,
            cols: 4,
        };
        for yes in [
            "q",
            "q_proj",
            "attn.q_proj",
            "blocks.3.attn.q_proj",
            "model.layers.3.self_attn.q_proj",
            "blocks.*.attn.?_proj",
            "attn.*",
        ] {
            assert!(matches(yes, &slice).unwrap(), "{yes}");
        }
        for no in ["k", "mlp.*", "attn.k_proj", "blocks.4.*"] {
            assert!(!matches(no, &slice).unwrap(), "{no}");
        }
        assert!(matches("[", &slice).unwrap_err().contains("no pattern"));
    }
}

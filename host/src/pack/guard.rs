//! Guardrails: limits on what a pack may cost. A measurement that is no number breaks every limit on it.

use serde::Serialize;

/// Limits; what is not given is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Rise of the perplexity over the base, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ppl_increase: Option<f64>,
    /// Loss of scoring speed against the base, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tps_loss: Option<f64>,
    /// Time to the first token with the pack, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_first_token_ms: Option<f64>,
    /// Most memory MLX may hold with the pack, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<u64>,
    /// Size of the pack's tensors, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pack_mb: Option<f64>,
}

/// What a pack was measured to cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Rise of the perplexity, percent.
    pub ppl_increase_pct: f64,
    /// Loss of speed, percent.
    pub tps_loss_pct: f64,
    /// Milliseconds to the first token.
    pub first_token_ms: f64,
    /// Peak memory, bytes.
    pub memory: u64,
    /// Size of the pack's tensors, bytes.
    pub pack_bytes: u64,
}

/// A limit that does not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breach {
    /// The option that set the limit.
    pub guardrail: &'static str,
    /// What was measured: empty, or a domain and batch size.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// The limit.
    pub limit: f64,
    /// What was measured.
    pub measured: f64,
    /// Unit of both.
    pub unit: &'static str,
}

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

impl Limits {
    /// Whether there is anything to check.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// Limits that `costs` break.
    pub fn check(&self, costs: &Costs, case: &str) -> Vec<Breach> {
        let mib = |bytes: u64| bytes as f64 / MIB;
        let all = [
            ("--max-ppl-increase", self.max_ppl_increase, costs.ppl_increase_pct, "%"),
            ("--max-tps-loss", self.max_tps_loss, costs.tps_loss_pct, "%"),
            ("--max-first-token-ms", self.max_first_token_ms, costs.first_token_ms, "ms"),
            ("--max-memory", self.max_memory.map(mib), mib(costs.memory), "MiB"),
            ("--max-pack-mb", self.max_pack_mb, mib(costs.pack_bytes), "MiB"),
        ];
        all.into_iter()
            .filter_map(|(guardrail, limit, measured, unit)| {
                let limit = limit?;
                let holds = measured <= limit;
                (!holds).then(|| Breach { guardrail, case: case.to_owned(), limit, measured, unit })
            })
            .collect()
    }
}

/// A size such as `800MiB`, `1.5G`, `2GB` or a number of bytes. `K`, `M` and `G` alone are powers of 1024.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; expected a number with KB, MB, GB, KiB, MiB or GiB, such as 2GiB");
    let trimmed = text.trim();
    let at = trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(at);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => MIB,
        "g" | "gib" => 1024.0 * MIB,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    match number.is_finite() && number >= 0.0 && number * factor < u64::MAX as f64 {
        true => Ok((number * factor) as u64),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const COSTS: Costs = Costs {
        ppl_increase_pct: 1.5,
        tps_loss_pct: 8.0,
        first_token_ms: 120.0,
        memory: 900 << 20,
        pack_bytes: 3 << 20,
    };

    #[test]
    fn each_limit_has_its_own_measurement() {
        let loose = Limits {
            max_ppl_increase: Some(1.5),
            max_tps_loss: Some(8.0),
            max_first_token_ms: Some(120.0),
            max_memory: Some(900 << 20),
            max_pack_mb: Some(3.0),
        };
        assert_eq!(loose.check(&COSTS, ""), []);
        let tight = Limits {
            max_ppl_increase: Some(1.4),
            max_tps_loss: Some(7.9),
            max_first_token_ms: Some(119.0),
            max_memory: Some((900 << 20) - 1),
            max_pack_mb: Some(2.9),
        };
        let broken = tight.check(&COSTS, "taxi, batch 8");
        let of: Vec<(&str, f64)> = broken.iter().map(|b| (b.guardrail, b.measured)).collect();
        let expected = [
            ("--max-ppl-increase", 1.5),
            ("--max-tps-loss", 8.0),
            ("--max-first-token-ms", 120.0),
            ("--max-memory", 900.0),
            ("--max-pack-mb", 3.0),
        ];
        assert_eq!(of, expected);
        assert!(broken.iter().all(|b| b.case == "taxi, batch 8"));
        assert!(Limits::default().check(&COSTS, "").is_empty() && Limits::default().is_empty());
    }

    #[test]
    fn what_is_no_number_breaks_its_limit() {
        let limits = Limits { max_ppl_increase: Some(1e9), ..Limits::default() };
        assert_eq!(limits.check(&Costs { ppl_increase_pct: f64::NAN, ..COSTS }, "").len(), 1);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("12", 12),
            ("1k", 1024),
            ("1.5 MiB", 3 << 19),
            ("2GB", 2_000_000_000),
            ("2gib", 2 << 30),
            (" 3 m ", 3 << 20),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "x", "-1GB", "1TBx", "infGB", "GB"] {
            assert!(parse_size(bad).unwrap_err().contains("is no size"), "{bad}");
        }
    }
}

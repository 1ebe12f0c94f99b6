//! A made-up model behind [`Measure`]: what an evaluator asks is answered from a script.

use crate::plugin::Measure;
use crate::plugin::contract::{Example, Metric};

/// What the made-up model answers.
#[derive(Clone, Debug)]
pub struct Script {
    /// Windows of evaluation text.
    pub windows: u32,
    /// Tokens of a window.
    pub tokens: u32,
    /// Nats per token by which `current` and `candidate` are worse than `base`.
    pub worse: f64,
    /// Instead of some log-probabilities of the candidate.
    pub spoiled: Option<f32>,
    /// Questions to fail, by name; all of them for `*`.
    pub fails: Option<&'static str>,
    /// Seed of the text.
    pub seed: u64,
    /// Questions asked, by name, in order.
    pub asked: Vec<&'static str>,
}

impl Script {
    /// A sound model, `worse` nats per token worse than the base.
    pub fn new(seed: u64, worse: f64) -> Script {
        Script { windows: 12, tokens: 64, worse, spoiled: None, fails: None, seed, asked: vec![] }
    }

    fn ask(&mut self, question: &'static str) -> Result<(), String> {
        if !self.asked.contains(&question) {
            self.asked.push(question);
        }
        match self.fails {
            Some(f) if f == question || f == "*" => Err(format!("{question} is not possible: the disk is on fire")),
            _ => Ok(()),
        }
    }

    /// A number from 0 to 1 that belongs to these numbers.
    fn chance(&self, window: u32, token: u32) -> f64 {
        let mut x = self.seed ^ (u64::from(window) << 32 | u64::from(token));
        // The finaliser of splitmix64.
        for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9_u64), (27, 0x94d0_49bb_1331_11eb)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn scores(&self, subject: &str, id: u32, tokens: u32) -> Vec<f32> {
        let is_base = subject == "base";
        let worse = if is_base { 0.0 } else { self.worse };
        let one = |t: u32| match self.spoiled {
            Some(bad) if !is_base && t % 7 == 3 => bad,
            _ => -(0.5 + 4.0 * self.chance(id, t) + worse) as f32,
        };
        (1..tokens).map(one).collect()
    }

    fn figure(name: &str, value: f64, unit: &str, higher_is_better: bool) -> Metric {
        Metric { name: name.into(), value, unit: unit.into(), higher_is_better, low: None, high: None }
    }

    /// A candidate that is worse is slower too.
    fn slower(&self, subject: &str) -> f64 {
        if subject == "base" { 1.0 } else { 1.0 + self.worse.max(0.0) }
    }
}

impl Measure for Script {
    fn windows(&self) -> u32 {
        self.windows
    }

    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        if matches!(self.fails, Some("window" | "*")) {
            return Err("window is not possible: the disk is on fire".into());
        }
        Ok((0..self.tokens).map(|t| (self.chance(index, t) * 32_000.0) as u32).collect())
    }

    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        self.ask("score")?;
        let id = |s: &Vec<u32>| s.iter().fold(7u32, |a, t| a.wrapping_mul(31).wrapping_add(*t));
        Ok(sequences.iter().map(|s| self.scores(subject, id(s), s.len() as u32)).collect())
    }

    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.ask("score-windows")?;
        Ok(indices.iter().map(|i| self.scores(subject, *i, self.tokens)).collect())
    }

    fn generate(&mut self, subject: &str, prompt: &str, max_tokens: u32) -> Result<String, String> {
        self.ask("generate")?;
        let asked = prompt.rsplit("number ").next().and_then(|n| n.trim_end_matches('?').parse::<u32>().ok());
        // What is much worse answers wrongly.
        let shift = u32::from(subject != "base" && self.worse >= 1.0);
        let answer = asked.map_or_else(|| prompt.to_owned(), |n| (n + shift).to_string());
        Ok(answer.chars().take(4 * max_tokens as usize).collect())
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        if matches!(self.fails, Some("tokenize" | "*")) {
            return Err("tokenize is not possible: the disk is on fire".into());
        }
        Ok(text.bytes().map(u32::from).collect())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        if matches!(self.fails, Some("detokenize" | "*")) {
            return Err("detokenize is not possible: the disk is on fire".into());
        }
        Ok(tokens.iter().map(|t| char::from_u32(*t).unwrap_or('?')).collect())
    }

    fn counters(&mut self, subject: &str) -> Result<Vec<Metric>, String> {
        self.ask("counters")?;
        let slower = self.slower(subject);
        Ok(vec![
            Script::figure("scored-tokens-per-second", 1000.0 / slower, "tokens/s", true),
            Script::figure("awake-parameters", 1e6, "", false),
            Script::figure("resident-bytes", 4e6 * slower, "bytes", false),
            Script::figure("peak-bytes", 5e6 * slower, "bytes", false),
        ])
    }

    fn divergence(&mut self, reference: &str, of: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.ask("divergence")?;
        let apart = if reference == of { 0.0 } else { self.worse.max(0.0) };
        let one = |i: &u32| -> Vec<f32> {
            let value = |t| match self.spoiled {
                Some(bad) if reference != of && t % 7 == 3 => bad,
                _ => (apart * (0.5 + self.chance(*i, t))) as f32,
            };
            (1..self.tokens).map(value).collect()
        };
        Ok(indices.iter().map(one).collect())
    }

    fn examples(&self) -> u32 {
        self.windows
    }

    fn example(&self, index: u32) -> Result<Example, String> {
        if matches!(self.fails, Some("example" | "*")) {
            return Err("example is not possible: the disk is on fire".into());
        }
        Ok(Example { prompt: format!("Which is number {index}?"), answer: index.to_string() })
    }

    fn timing(&mut self, subject: &str, prompt_tokens: u32, _: u32) -> Result<Vec<Metric>, String> {
        self.ask("timing")?;
        let slower = self.slower(subject);
        let token = Metric {
            low: Some(9.0 * slower),
            high: Some(12.0 * slower),
            ..Script::figure("token-ms", 10.0 * slower, "ms", false)
        };
        Ok(vec![
            Script::figure("first-token-ms", 10.0 + f64::from(prompt_tokens) * slower, "ms", false),
            token,
            Script::figure("decode-tokens-per-second", 100.0 / slower, "tokens/s", true),
        ])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_worse_candidate_is_worse_by_as_much() {
        let mut script = Script::new(1, 0.5);
        let mean = |script: &mut Script, subject: &str| {
            let scores = script.score_windows(subject, &[0, 1, 2]).unwrap().concat();
            scores.iter().map(|s| f64::from(*s)).sum::<f64>() / scores.len() as f64
        };
        let (base, candidate) = (mean(&mut script, "base"), mean(&mut script, "candidate"));
        assert!((base - candidate - 0.5).abs() < 1e-6, "{base} {candidate}");
        assert!(base < -0.5);
        assert_eq!(script.asked, ["score-windows"]);
    }

    #[test]
    fn a_question_can_fail() {
        let mut script = Script { fails: Some("generate"), ..Script::new(1, 0.0) };
        assert!(script.generate("base", "Which is number 3?", 8).unwrap_err().contains("fire"));
        assert!(script.counters("base").is_ok());
        script.fails = None;
        assert_eq!(script.generate("base", "Which is number 3?", 8).unwrap(), "3");
        script.worse = 2.0;
        assert_eq!(script.generate("candidate", "Which is number 3?", 8).unwrap(), "4");
    }
}

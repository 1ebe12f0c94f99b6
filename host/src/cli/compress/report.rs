//! What a compression ends with: a table of what was kept, bytes, and perplexity before and after.

use crate::cli::{Global, show, table};
use crate::compress::manifest::{Manifest, SliceRecord};
use crate::eval::stats;
use crate::model::Level;
use std::path::Path;

/// The document of --json.
#[derive(serde::Serialize)]
pub(super) struct Report<'a> {
    pub(super) out: &'a Path,
    /// Bytes of weight files, before and after.
    pub(super) disk: [u64; 2],
    /// Bytes of weights in memory while scoring, before and after.
    pub(super) memory: [u64; 2],
    /// Most bytes that MLX held at once.
    pub(super) peak_mlx: u64,
    /// Slices that were decomposed at once.
    pub(super) workers: usize,
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) manifest: &'a Manifest,
}

impl Report<'_> {
    /// For people.
    pub(super) fn show(&self, g: &Global) {
        let m = self.manifest;
        if !g.quiet {
            say!("{}", kinds(m));
        }
        let parameters = m.parameters();
        let kept = m.awake_parameters(&m.stored.iter().map(|s| s.planned).collect::<Vec<_>>());
        say!(
            "kept        {:.1} % of {} of {} slices",
            100.0 * kept as f64 / parameters as f64,
            match m.settings.coarse {
                None => format!("the {} parameters", show::millions(parameters)),
                Some(_) => format!("the {} in float16", show::megabytes(2 * parameters)),
            },
            m.stored.len()
        );
        say!("on disk     {} -> {}", show::megabytes(self.disk[0]), show::megabytes(self.disk[1]));
        say!("in memory   {} -> {} while scoring", show::megabytes(self.memory[0]), show::megabytes(self.memory[1]));
        if self.disk[1] > self.disk[0] && !g.quiet {
            say!(
                "            the base is quantised, and components in {} bits take more; --factor-bits 4 or --mode residual take less",
                m.settings.factor_bits
            );
        }
        if let Some(x) = &m.measured {
            let error = |i: usize| x.errors.map_or(String::new(), |e| format!(" ± {:.2}", e[i]));
            let interval = x.interval.map_or(String::new(), |[l, h]| format!(" (95 %: {l:+.4} to {h:+.4})"));
            say!(
                "perplexity  {:.2}{} -> {:.2}{}; loss {:+.4} nats per token{interval}",
                x.before,
                error(0),
                x.after,
                error(1),
                x.rise
            );
        }
        say!("written to  {} in {:.1} s", self.out.display(), self.seconds);
        if !g.quiet {
            say!("\n  plastic-host generate --base {0} --prompt 'Why is the sky blue?'", self.out.display());
        }
    }
}

/// One line a kind of slice.
fn kinds(m: &Manifest) -> comfy_table::Table {
    let repairs = m.settings.coarse.is_some();
    let headers = match repairs {
        false => ["slices", "number", "dense", "rank of the others", "kept", "kept by layer"],
        true => ["slices", "number", "dense", "rank of the repair", "repair", "repair by layer"],
    };
    let mut table = table::plain(&headers, &[1, 2, 3, 4]);
    let kind = |name: &str| name.rsplit_once('.').map_or(name, |(_, k)| k).to_owned();
    let mut order: Vec<String> = Vec::new();
    for s in &m.stored {
        if !order.contains(&kind(&s.name)) {
            order.push(kind(&s.name));
        }
    }
    for k in order {
        let all: Vec<_> = m.stored.iter().filter(|s| kind(&s.name) == k).collect();
        let mut ranks: Vec<f64> = Vec::new();
        let (mut kept, mut whole) = (0, 0);
        for s in &all {
            let dense = u64::from(s.rows) * u64::from(s.cols);
            whole += dense;
            kept += match s.planned {
                Level::Dense => dense,
                Level::Rank(r) => {
                    ranks.push(f64::from(r));
                    u64::from(r) * (u64::from(s.rows) + u64::from(s.cols))
                }
            };
        }
        ranks.sort_by(f64::total_cmp);
        let spread = match (ranks.first(), ranks.last()) {
            (Some(l), Some(h)) => format!("{l:.0} to {h:.0}, median {:.0}", stats::median(&ranks)),
            _ => "-".into(),
        };
        table.add_row([
            k,
            all.len().to_string(),
            (all.len() - ranks.len()).to_string(),
            spread,
            format!("{:.1} %", 100.0 * kept as f64 / whole.max(1) as f64),
            all.iter().map(|s| bar(m, s)).collect(),
        ]);
    }
    table
}

/// The share of a slice that is kept, as a bar one character wide; in mode residual that of the largest repair.
fn bar(m: &Manifest, s: &SliceRecord) -> char {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let rank = |s: &SliceRecord| if let Level::Rank(r) = s.planned { r } else { 0 };
    let share = match (s.planned, s.coarse) {
        (Level::Dense, _) => 1.0,
        (Level::Rank(r), 0) => {
            f64::from(r) * (f64::from(s.rows) + f64::from(s.cols)) / (f64::from(s.rows) * f64::from(s.cols))
        }
        (Level::Rank(r), _) => f64::from(r) / f64::from(m.stored.iter().map(rank).max().unwrap_or(1).max(1)),
    };
    BARS[((share * 8.0).ceil() as usize).min(8)]
}

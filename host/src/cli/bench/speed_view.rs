//! What `plastic-host bench speed` prints for people.

use super::speed::{Document, Peak, Slices, Spread};
use crate::cli::{Global, show, table};
use crate::model::slice_timing::{Rounds, Shape};

/// Prints the tables.
pub(super) fn show(d: &Document, g: &Global) {
    if !g.quiet {
        say!("model        {}, {} on disk", d.origin.base, show::megabytes(d.checkpoint_bytes));
        let blas = &d.device.blas.name;
        say!("measured on  {}, {} threads, BLAS {blas}", d.device.backend.name(), d.device.threads);
        if let (Some(before), Some(after)) = (d.baseline_process_bytes, d.loaded_process_bytes) {
            let (before, after) = (show::megabytes(before), show::megabytes(after));
            say!("process      {before} before the model is loaded, {after} after");
        }
    }
    let mut t = table::plain(&["work", "tokens/s", "first token", "peak in MLX", "peak of the process"], &[1, 2, 3, 4]);
    let mut rows = 0;
    let mut row = |work: String, speed: &Spread, first: Option<&Spread>, peak: &Peak| {
        let process = peak.process_bytes.map_or(String::new(), show::megabytes);
        let first = first.map_or(String::new(), |f| format!("{} ms", text(f)));
        t.add_row([work, text(speed), first, show::megabytes(peak.mlx_bytes), process]);
        rows += 1;
    };
    for x in &d.decode {
        let work = format!("decode {} tokens after {}, batch {}", x.tokens, x.prompt, x.batch);
        row(work, &x.tokens_per_second, Some(&x.first_token_ms), &x.peak);
    }
    if let Some(x) = &d.prefill {
        row(format!("prompt of {} tokens", x.tokens), &x.tokens_per_second, Some(&x.first_token_ms), &x.peak);
    }
    if let Some(x) = &d.score {
        row(format!("score {} x {} tokens", x.windows, x.window_tokens), &x.tokens_per_second, None, &x.peak);
    }
    if rows > 0 {
        say!("{t}");
    }
    if let Some(x) = &d.score {
        say!("mean loss {:.6} nats a token", x.loss);
    }
    if let Some(s) = &d.slices {
        slices(s);
    }
}

fn slices(s: &Slices) {
    say!("slices in factors of {} of their parameters; microseconds a product, median:", s.share);
    let headers = ["slices", "m x n", "rank", "rows", "type", "dense", "factors", "faster", "as stored"];
    let mut t = table::plain(&headers, &[2, 3, 5, 6, 7, 8]);
    for shape in &s.shapes {
        for times in &shape.times {
            for (form, dense, factored) in [
                ("float32", &times.dense_us, &times.factored_us),
                ("8 bits", &times.dense_8bit_us, &times.factored_8bit_us),
            ] {
                if dense.is_empty() {
                    continue;
                }
                let (dense, factored) = (median(dense), median(factored));
                t.add_row([
                    kinds(shape),
                    format!("{} x {}", shape.m, shape.n),
                    shape.rank.to_string(),
                    times.rows.to_string(),
                    form.to_owned(),
                    format!("{dense:.1}"),
                    format!("{factored:.1}"),
                    format!("{:.2}x", dense / factored),
                    format!("{:.1}", median(&times.stored_us)),
                ]);
            }
        }
    }
    say!("{t}");
    let rows = s.shapes.first().map_or(&[][..], |shape| &shape.times).iter().map(|t| t.rows);
    for (i, rows) in rows.enumerate() {
        let of = |pick: fn(&crate::model::slice_timing::Times) -> &Rounds| -> f64 {
            s.shapes.iter().filter_map(|x| Some(x.count as f64 * median(pick(x.times.get(i)?)))).sum()
        };
        let (dense, factored) = (of(|t| &t.dense_us), of(|t| &t.factored_us));
        let plural = if rows == 1 { "" } else { "s" };
        say!("all slices with {rows} row{plural}: {:.2}x in float32", dense / factored);
    }
    if let Some(stored) = s.shapes.first().map(|x| &x.stored_as) {
        say!("stored: {stored}");
    }
}

fn kinds(shape: &Shape) -> String {
    let short: Vec<&str> = shape.kinds.iter().map(|k| k.strip_suffix("_proj").unwrap_or(k)).collect();
    short.join(", ")
}

fn median(rounds: &Rounds) -> f64 {
    Spread::of(rounds.iter().copied()).map_or(f64::NAN, |s| s.median)
}

/// The median, and the range where there is one.
fn text(s: &Spread) -> String {
    let digits = usize::from(s.median < 99.95);
    match s.min < s.max {
        true => format!("{:.digits$} ({:.digits$} to {:.digits$})", s.median, s.min, s.max),
        false => format!("{:.digits$}", s.median),
    }
}

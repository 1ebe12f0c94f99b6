//! What smaller awake budgets cost, as an SVG picture. No scripts, no fonts or files from elsewhere; figures under the
//! mouse.

use super::inspect::{Inspection, Point};
use crate::plastic::factor::Metric;
use std::fmt::Write;

const INK: &str = "#d7dae0";
const DIM: &str = "#8b93a1";
const BACK: &str = "#1b1f27";
const GRID: &str = "#2a303c";
const LINE: &str = "#5cadff";
const NOW: &str = "#ffa858";

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// The plot: left, top, right, bottom.
const PLOT: [f64; 4] = [84.0, 84.0, 728.0, 384.0];

/// Text that may stand in XML.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A round number at least as large as `most`, and as large as a few equal steps.
fn round_up(most: f64) -> f64 {
    if !(most.is_finite() && most > 0.0) {
        return 1.0;
    }
    let unit = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|f| f * unit).find(|v| *v >= most).unwrap_or(most)
}

fn text(out: &mut String, x: f64, y: f64, style: &str, words: &str) {
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" {style}>{}</text>"#, plain(words));
}

/// The curve of an inspection; `name` is the directory's.
pub fn svg(name: &str, i: &Inspection) -> String {
    let [left, top, right, bottom] = PLOT;
    let most = round_up(i.curve.iter().map(|p| p.loss).fold(0.0, f64::max));
    let x = |share: f64| left + (right - left) * share.clamp(0.0, 1.0);
    let y = |loss: f64| bottom - (bottom - top) * (loss / most).clamp(0.0, 1.0);
    let (unit, title) = match i.order {
        Metric::Fisher => ("nats per token", "Predicted rise of the loss over the base, by awake budget"),
        _ => ("lost energy / 2", "Energy that sleeps, by awake budget"),
    };
    let mut body = String::new();
    text(&mut body, 24.0, 34.0, r#"font-size="18" font-weight="bold""#, name);
    text(&mut body, 24.0, 58.0, &format!(r#"fill="{DIM}""#), title);
    for step in 0..=5 {
        let part = f64::from(step) / 5.0;
        let (gx, gy) = (x(part), y(part * most));
        let _ = writeln!(
            body,
            r#"<path d="M{gx:.1} {top:.1}V{bottom:.1}M{left:.1} {gy:.1}H{right:.1}" stroke="{GRID}" fill="none"/>"#
        );
        let small = format!(r#"font-size="11" fill="{DIM}""#);
        text(&mut body, gx, bottom + 18.0, &format!(r#"{small} text-anchor="middle""#), &format!("{part:.1}"));
        text(&mut body, left - 8.0, gy + 4.0, &format!(r#"{small} text-anchor="end""#), &short(part * most));
    }
    let middle = (left + right) / 2.0;
    let axis = format!(r#"font-size="11" fill="{DIM}" text-anchor="middle""#);
    text(&mut body, middle, bottom + 38.0, &axis, "awake budget: share of the slices' parameters");
    text(&mut body, left, top - 10.0, &format!(r#"font-size="11" fill="{DIM}" text-anchor="end""#), unit);
    let points: Vec<String> = i.curve.iter().map(|p| format!("{:.1},{:.1}", x(p.budget), y(p.loss))).collect();
    let _ = writeln!(body, r#"<polyline points="{}" fill="none" stroke="{LINE}" stroke-width="2"/>"#, points.join(" "));
    for p in &i.curve {
        dot(&mut body, x(p.budget), y(p.loss), LINE, &tip(p, unit));
    }
    if let Some(budget) = i.awake_budget {
        let at = budget.min(i.curve.last().map_or(budget, |p| p.budget));
        dot(&mut body, x(at), y(i.loss), NOW, &format!("awake now: budget {budget:.3}, {} {unit}", short(i.loss)));
        let label = format!(r#"font-size="11" fill="{NOW}" text-anchor="middle""#);
        text(&mut body, x(at), y(i.loss) - 10.0, &label, "now");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {HEIGHT:.0}\" width=\"{WIDTH:.0}\" height=\"{HEIGHT:.0}\" role=\"img\"><title>{}: {}</title>\n\
         <rect width=\"{WIDTH:.0}\" height=\"{HEIGHT:.0}\" rx=\"8\" fill=\"{BACK}\"/>\n\
         <g font-family=\"'DejaVu Sans Mono',Menlo,Consolas,ui-monospace,monospace\" font-size=\"12\" fill=\"{INK}\">\n{body}</g>\n</svg>\n",
        plain(name),
        plain(title)
    )
}

fn dot(out: &mut String, x: f64, y: f64, fill: &str, tip: &str) {
    let _ =
        writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{fill}"><title>{}</title></circle>"#, plain(tip));
}

fn tip(p: &Point, unit: &str) -> String {
    format!("budget {:.3}: {:.1} M parameters awake, {} {unit}", p.budget, p.parameters as f64 / 1e6, short(p.loss))
}

/// A figure in a few characters.
pub fn short(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        a if a >= 1e-3 => format!("{v:.3}"),
        _ => format!("{v:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_and_names_cannot_break_out() {
        assert_eq!([0.0, 0.13, 2.1, 4.7, 9.9].map(round_up), [1.0, 0.2, 2.5, 5.0, 10.0]);
        let i = Inspection {
            awake_budget: Some(0.5),
            runs_base: false,
            kinds: Vec::new(),
            bytes: None,
            disk: 0,
            order: Metric::Fisher,
            curve: vec![
                Point { budget: 0.1, parameters: 100, loss: 1.9 },
                Point { budget: 0.8, parameters: 800, loss: 0.1 },
            ],
            loss: 0.4,
            base_problem: None,
        };
        let picture = svg("<a & b>", &i);
        assert!(picture.contains("&lt;a &amp; b&gt;") && !picture.contains("<a & b>"), "{picture}");
        // Both points and the one that is awake now.
        assert_eq!(picture.matches("<circle").count(), 3);
        assert!(picture.contains("148.4,99.0 599.2,369.0"), "{picture}");
    }
}

//! A bake-off as a picture: one line an arm, one dot a seed, a bar at the mean, the base as a dashed line.

use super::verdict::ArmResult;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 180.0;
const RIGHT: f64 = 40.0;
const ROW: f64 = 44.0;
const TOP: f64 = 60.0;

/// The picture as SVG.
pub fn draw(title: &str, base: f64, arms: &[ArmResult]) -> String {
    let all: Vec<f64> = arms.iter().flat_map(|a| a.perplexities.iter().copied()).chain([base]).collect();
    let (low, high) = all.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(*x), h.max(*x)));
    let margin = (0.05 * (high - low)).max(1e-6 * high.abs()).max(1e-9);
    let (low, high) = (low - margin, high + margin);
    let x = |value: f64| LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * arms.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{h}\" viewBox=\"0 0 {WIDTH} {h}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"16\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title),
        h = bottom + 50.0
    );
    let _ = writeln!(
        svg,
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#888\" stroke-dasharray=\"4 4\"/><text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\" fill=\"#666\">base {base:.3}</text>",
        x(base),
        TOP - 8.0
    );
    for (i, arm) in arms.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        let _ = writeln!(svg, "<text x=\"16\" y=\"{:.1}\">{}</text>", y + 4.0, escaped(&arm.arm));
        if let Some(mean) = arm.perplexity {
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\" stroke=\"#1f5fa8\" stroke-width=\"3\"/><text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\" font-size=\"11\">{mean:.3}</text>",
                x(mean),
                y - 11.0,
                y + 11.0,
                y + 22.0
            );
        }
        for value in &arm.perplexities {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#1f5fa8\" fill-opacity=\"0.5\"/>",
                x(*value)
            );
        }
        if let Some(a) = &arm.against_reference {
            let _ = writeln!(
                svg,
                "<text x=\"16\" y=\"{:.1}\" font-size=\"10\" fill=\"#666\">{:+.2} %: {}</text>",
                y + 18.0,
                a.ppl_delta_pct,
                escaped(a.verdict)
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">perplexity on held-out text (left is better)</text>\n</svg>",
        0.5 * (LEFT + WIDTH - RIGHT),
        bottom + 36.0
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_dot_and_names_cannot_break_out() {
        let arm = ArmResult {
            arm: "a<b>".into(),
            seeds: 2,
            failed: 0,
            perplexities: vec![10.0, 11.0],
            perplexity: Some(10.5),
            against_base_pct: Some(-5.0),
            total_rank: 8.0,
            bytes: 1.0,
            seconds: 1.0,
            against_reference: None,
        };
        let svg = draw("t & u", 12.0, &[arm]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("a&lt;b&gt;") && svg.contains("t &amp; u") && svg.ends_with("</svg>\n"));
        assert!(!draw("equal", 12.0, &[]).contains("NaN"));
    }
}

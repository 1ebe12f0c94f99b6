//! The picture of a demo as SVG: one panel a figure over the steps. No scripts, no fonts or files from
//! elsewhere; values under the mouse. A pure function; nothing here can fail.

use std::fmt::Write;

const INK: &str = "#d7dae0";
const DIM: &str = "#8b93a1";
const BACK: &str = "#1b1f27";
const GRID: &str = "#2b313c";

const LEFT: f64 = 150.0;
const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 96.0;
const GAP: f64 = 30.0;

/// One panel.
pub struct Panel<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Its unit, or empty.
    pub unit: &'a str,
    /// A value a step.
    pub values: &'a [f64],
    /// Digits behind the point.
    pub digits: usize,
    /// Whether its scale begins at 0.
    pub from_zero: bool,
    /// Columns, else a line.
    pub columns: bool,
    /// Colour, `#rrggbb`.
    pub colour: &'a str,
}

/// Text that may stand in XML.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The picture; `title` above, `note` below it.
pub fn svg(title: &str, note: &str, panels: &[Panel]) -> String {
    let mut body = String::new();
    let mut y = 58.0;
    for p in panels {
        panel(&mut body, p, y);
        y += HEIGHT + GAP;
    }
    let height = y + 34.0;
    let steps = panels.iter().map(|p| p.values.len()).max().unwrap_or(0);
    let every = (steps / 20).max(1);
    for step in (0..steps).filter(|s| s % every == 0) {
        let x = middle(step, steps);
        let _ = writeln!(
            body,
            r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="{DIM}">{}</text>"#,
            y - GAP + 18.0,
            step + 1
        );
    }
    let _ = writeln!(body, r#"<text x="24" y="{:.1}" fill="{DIM}">{}</text>"#, y + 16.0, plain(note));
    let width = LEFT + WIDTH + 30.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\"><title>{title}</title>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\" fill=\"{BACK}\"/>\n\
         <g font-family=\"'DejaVu Sans Mono',Menlo,Consolas,ui-monospace,monospace\" font-size=\"12\" fill=\"{INK}\">\n\
         <text x=\"24\" y=\"34\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n{body}</g>\n</svg>\n",
        title = plain(title)
    )
}

/// Middle of a step's place.
fn middle(step: usize, steps: usize) -> f64 {
    LEFT + WIDTH * (step as f64 + 0.5) / steps.max(1) as f64
}

fn panel(body: &mut String, p: &Panel, top: f64) {
    let finite = || p.values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    if !low.is_finite() {
        return;
    }
    let floor = if p.from_zero { 0.0 } else { low };
    let span = if high > floor { high - floor } else { 1.0 };
    let place = |v: f64| top + HEIGHT * (1.0 - (v - floor) / span);
    for (v, at) in [(high, top), (floor, top + HEIGHT)] {
        let _ = writeln!(
            body,
            r#"<line x1="{LEFT}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="{GRID}"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{DIM}">{v:.*}</text>"#,
            LEFT + WIDTH,
            LEFT - 8.0,
            at + 4.0,
            p.digits
        );
    }
    let unit = if p.unit.is_empty() { String::new() } else { format!(", {}", p.unit) };
    let _ = writeln!(
        body,
        r#"<text x="24" y="{:.1}" fill="{}">{}</text><text x="24" y="{:.1}" fill="{DIM}">{}</text>"#,
        top + HEIGHT / 2.0 - 4.0,
        p.colour,
        plain(p.name),
        top + HEIGHT / 2.0 + 12.0,
        plain(unit.trim_start_matches(", "))
    );
    let steps = p.values.len();
    let wide = WIDTH / steps.max(1) as f64;
    let points = p.values.iter().enumerate().filter(|(_, v)| v.is_finite());
    if !p.columns {
        let line: Vec<String> =
            points.clone().map(|(i, v)| format!("{:.1},{:.1}", middle(i, steps), place(*v))).collect();
        let _ = writeln!(
            body,
            r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>"#,
            line.join(" "),
            p.colour
        );
    }
    for (i, v) in points {
        let tip = plain(&format!("step {}: {v:.*}{unit}", i + 1, p.digits));
        let (x, y) = (middle(i, steps), place(*v));
        let _ = match p.columns {
            true => writeln!(
                body,
                r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" rx="2" fill="{}"><title>{tip}</title></rect>"#,
                x - 0.36 * wide,
                0.72 * wide,
                (top + HEIGHT - y).max(0.6),
                p.colour
            ),
            false => writeln!(
                body,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{}"><title>{tip}</title></circle>"#,
                p.colour
            ),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(values: &[f64], columns: bool) -> String {
        let panel = Panel { name: "a < b", unit: "ms", values, digits: 1, from_zero: true, columns, colour: "#5cadff" };
        svg("demo & more", "note", &[panel])
    }

    #[test]
    fn texts_are_escaped_and_every_step_has_a_mark() {
        let drawn = one(&[1.0, 2.0, 4.0], true);
        assert!(drawn.contains("demo &amp; more") && drawn.contains("a &lt; b"), "{drawn}");
        assert_eq!(drawn.matches("<title>step ").count(), 3);
        assert!(drawn.contains("step 3: 4.0, ms"));
        // A quarter of the highest column, in the same place of the scale.
        assert!(drawn.contains(r#"height="24.0""#) && drawn.contains(r#"height="96.0""#), "{drawn}");
    }

    #[test]
    fn a_line_leaves_out_what_is_no_number() {
        let drawn = one(&[1.0, f64::NAN, 2.0], false);
        assert_eq!(drawn.matches("<circle").count(), 2);
        assert!(!drawn.contains("NaN"), "{drawn}");
        assert!(!one(&[f64::NAN], true).contains("step 1:"));
    }
}

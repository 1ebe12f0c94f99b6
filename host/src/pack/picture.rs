//! A pack as an SVG picture: rank and norm of each update by layer and projection, and how the strength of the
//! updates is spread over their components. No scripts, no fonts or files from elsewhere; figures under the mouse.

use super::ledger::{Entry, Ledger};
use super::product;
use std::collections::BTreeSet;
use std::fmt::Write;

const INK: &str = "#d7dae0";
const DIM: &str = "#8b93a1";
const BACK: &str = "#1b1f27";
const EMPTY: &str = "#232833";
/// From little to much: ranks blue, norms orange, shares green.
const RANKS: [[f64; 3]; 2] = [[36.0, 49.0, 72.0], [92.0, 173.0, 255.0]];
const NORMS: [[f64; 3]; 2] = [[66.0, 46.0, 38.0], [255.0, 168.0, 88.0]];
const SHARES: [[f64; 3]; 2] = [[38.0, 62.0, 52.0], [104.0, 214.0, 150.0]];

const LEFT: f64 = 132.0;
const CELL_HEIGHT: f64 = 24.0;

/// Text that may stand in XML.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(ramp: [[f64; 3]; 2], share: f64) -> String {
    let t = share.clamp(0.0, 1.0);
    let [r, g, b] = std::array::from_fn(|i| (ramp[0][i] + t * (ramp[1][i] - ramp[0][i])).round() as u8);
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A figure in at most four or five characters.
fn short(v: f64) -> String {
    match v {
        0.0 => "0".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.01 => format!("{v:.2}"),
        v => format!("{v:.0e}"),
    }
}

struct Canvas {
    body: String,
    y: f64,
}

impl Canvas {
    fn text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        let _ = writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" {style}>{}</text>"#, plain(text));
    }

    fn cell(&mut self, [x, y, w, h]: [f64; 4], fill: &str, tip: &str) {
        let tip = if tip.is_empty() { String::new() } else { format!("<title>{}</title>", plain(tip)) };
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" rx="2" fill="{fill}">{tip}</rect>"#
        );
    }

    fn heading(&mut self, text: &str, note: &str) {
        self.y += 34.0;
        self.text(24.0, self.y, r#"font-size="14" font-weight="bold""#, text);
        let x = 24.0 + 8.6 * text.chars().count() as f64 + 14.0;
        self.text(x, self.y, &format!(r#"fill="{DIM}""#), note);
        self.y += 12.0;
    }

    /// One row a target, one column a layer; the shade is the figure's share of the largest.
    fn heat(
        &mut self,
        l: &Ledger,
        grid: &Grid,
        ramp: [[f64; 3]; 2],
        of: &dyn Fn(&Entry) -> f64,
        label: &dyn Fn(f64) -> String,
    ) {
        let largest = l.adapters.iter().map(of).fold(0.0, f64::max);
        self.legend(LEFT + grid.span() - 130.0, ramp, &label(largest));
        for target in &grid.targets {
            self.text(LEFT - 10.0, self.y + 16.0, r#"text-anchor="end""#, target);
            for (i, layer) in grid.layers.iter().enumerate() {
                let at = [LEFT + i as f64 * grid.width, self.y, grid.width - 2.0, CELL_HEIGHT - 2.0];
                match l.adapters.iter().find(|e| e.layer == *layer && e.target == *target) {
                    None => self.cell(at, EMPTY, ""),
                    Some(e) => {
                        let share = if largest > 0.0 { of(e) / largest } else { 0.0 };
                        self.cell(at, &colour(ramp, share), &tip(e));
                        let label = label(of(e));
                        if 6.6 * label.chars().count() as f64 <= grid.width - 3.0 {
                            let ink = if share > 0.55 { "#10131a" } else { INK };
                            let style =
                                format!(r#"font-size="11" text-anchor="middle" fill="{ink}" pointer-events="none""#);
                            self.text(at[0] + at[2] / 2.0, at[1] + 15.0, &style, &label);
                        }
                    }
                }
            }
            self.y += CELL_HEIGHT;
        }
        self.layers(grid);
        self.y += 18.0;
    }

    /// What the shades mean, beside the heading.
    fn legend(&mut self, x: f64, ramp: [[f64; 3]; 2], largest: &str) {
        let (y, style) = (self.y - 12.0, format!(r#"font-size="11" fill="{DIM}""#));
        for i in 0..20 {
            self.cell([x + 4.0 * f64::from(i), y - 8.0, 4.0, 8.0], &colour(ramp, f64::from(i) / 19.0), "");
        }
        self.text(x - 6.0, y, &format!(r#"{style} text-anchor="end""#), "0");
        self.text(x + 86.0, y, &style, largest);
    }

    fn layers(&mut self, grid: &Grid) {
        // As many numbers as have room.
        let every = (24.0 / grid.width).ceil().max(1.0) as usize;
        for (i, layer) in grid.layers.iter().enumerate().step_by(every) {
            let x = LEFT + (i as f64 + 0.5) * grid.width - 1.0;
            let style = format!(r#"font-size="11" text-anchor="middle" fill="{DIM}""#);
            self.text(x, self.y + 12.0, &style, &layer.to_string());
        }
        self.text(LEFT - 10.0, self.y + 12.0, &format!(r#"font-size="11" text-anchor="end" fill="{DIM}""#), "layer");
    }

    /// One bar a component: its mean share of the squared norm over the adapters of a target.
    fn shares(&mut self, l: &Ledger, grid: &Grid) {
        const HEIGHT: f64 = 54.0;
        let most = l.adapters.iter().map(|e| e.singular_values.len()).max().unwrap_or(0).clamp(1, 64);
        let width = (grid.span() / most as f64).min(34.0);
        for target in &grid.targets {
            let of: Vec<&Entry> = l.adapters.iter().filter(|e| e.target == *target && e.fro_norm > 0.0).collect();
            self.text(LEFT - 10.0, self.y + HEIGHT - 6.0, r#"text-anchor="end""#, target);
            for i in 0..most {
                let shares = of.iter().map(|e| e.singular_values.get(i).map_or(0.0, |s| (s / e.fro_norm).powi(2)));
                let share = shares.sum::<f64>() / of.len().max(1) as f64;
                let height = share * (HEIGHT - 8.0);
                let x = LEFT + i as f64 * width;
                self.cell([x, self.y + HEIGHT - 4.0, width - 2.0, 1.0], EMPTY, "");
                let tip = format!("{target}: component {} carries {:.1} % on average", i + 1, 100.0 * share);
                let at = [x, self.y + HEIGHT - 4.0 - height, width - 2.0, height.max(0.6)];
                self.cell(at, &colour(SHARES, 1.0 - i as f64 / most as f64), &tip);
            }
            self.y += HEIGHT;
        }
        self.y += 6.0;
    }
}

/// What the user reads under the mouse.
fn tip(e: &Entry) -> String {
    format!(
        "{}: rank {}, effective {} (entropy {:.1}), stable {:.2}, norm {:.4}, largest value {:.4}",
        e.adapter, e.declared_rank, e.effective_rank, e.entropy_rank, e.stable_rank, e.fro_norm, e.spectral_norm
    )
}

/// Layers and targets of a pack, and the width of a cell.
struct Grid {
    layers: Vec<u32>,
    targets: Vec<String>,
    width: f64,
}

impl Grid {
    fn of(l: &Ledger) -> Grid {
        let layers: Vec<u32> = l.adapters.iter().map(|e| e.layer).collect::<BTreeSet<_>>().into_iter().collect();
        let mut targets: Vec<String> = Vec::new();
        for e in &l.adapters {
            if !targets.contains(&e.target) {
                targets.push(e.target.clone());
            }
        }
        targets.sort_by_key(|t| (place(t), t.clone()));
        let width = (930.0 / layers.len().max(1) as f64).clamp(9.0, 40.0);
        Grid { layers, targets, width }
    }

    fn span(&self) -> f64 {
        (self.layers.len() as f64 * self.width).max(560.0)
    }
}

/// The order in which a layer computes.
fn place(target: &str) -> usize {
    let order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    order.iter().position(|o| target.ends_with(o)).unwrap_or(order.len())
}

/// The picture of a pack.
pub fn svg(l: &Ledger, base: &str) -> String {
    let grid = Grid::of(l);
    let mut c = Canvas { body: String::new(), y: 36.0 };
    c.text(24.0, c.y, r#"font-size="18" font-weight="bold""#, &format!("pack {}", l.pack));
    c.y += 20.0;
    let s = &l.summary;
    let spread = product::norm(&l.adapters.iter().map(|e| e.fro_norm).collect::<Vec<_>>());
    let base = if base.is_empty() { String::new() } else { format!(" · base {base}") };
    let about = format!(
        "{} adapters · rank {} in all, {} effective · {:.2} MB · norm {}{base}",
        s.adapter_count,
        s.declared_rank,
        s.effective_rank,
        s.bytes as f64 / 1e6,
        short(spread)
    );
    c.text(24.0, c.y, &format!(r#"fill="{DIM}""#), &about);
    c.heading("Rank", "components of each update");
    c.heat(l, &grid, RANKS, &|e| e.declared_rank as f64, &|v| format!("{v:.0}"));
    c.heading("Norm", "Frobenius norm of each update, alpha / r · A B");
    c.heat(l, &grid, NORMS, &|e| e.fro_norm, &short);
    c.heading("Spectrum", "mean share of the squared norm that each component carries, the largest first");
    c.shares(l, &grid);
    let (width, height) = (LEFT + grid.span() + 32.0, c.y + 16.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\"><title>Ranks and norms of the pack {}</title>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\" fill=\"{BACK}\"/>\n\
         <g font-family=\"'DejaVu Sans Mono',Menlo,Consolas,ui-monospace,monospace\" font-size=\"12\" fill=\"{INK}\">\n{}</g>\n</svg>\n",
        plain(&l.pack),
        c.body
    )
}

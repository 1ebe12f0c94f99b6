//! The history of ranks as a picture: one row a slice, one column a decision, darker where more is awake; above it
//! the total. Plain SVG that needs no font and no script.

use std::fmt::Write;

/// What became of the ranks.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Names of the slices, as `blocks.3.attn.q_proj`.
    pub slices: Vec<String>,
    /// Components each can have.
    pub most: Vec<u32>,
    /// Update, fate, and ranks of all slices; the first is the beginning.
    pub columns: Vec<(u32, String, Vec<u32>)>,
}

impl History {
    /// From the lines of `ranks.jsonl`; `None` where it is not one.
    pub fn read(text: &str) -> Option<History> {
        let mut lines = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let opening = lines.next()?;
        let ranks = |v: &serde_json::Value| -> Option<Vec<u32>> {
            v.get("awake")?.as_array()?.iter().map(|a| Some(a.as_array()?.len() as u32)).collect()
        };
        let names = opening.get("slices")?.as_array()?;
        let slices = names.iter().map(|n| super::super::key::of_slice(n.as_str()?)).collect::<Option<_>>()?;
        let most = opening.get("most")?.as_array()?.iter().map(|m| Some(m.as_u64()? as u32)).collect::<Option<_>>()?;
        let mut columns = vec![(0, String::new(), ranks(&opening)?)];
        for d in lines {
            columns.push((d.get("step")?.as_u64()? as u32, d.get("fate")?.as_str()?.to_owned(), ranks(&d)?));
        }
        Some(History { slices, most, columns })
    }

    /// The picture.
    pub fn svg(&self) -> String {
        const LEFT: usize = 150;
        const TOP: usize = 110;
        let (row, column) =
            (if self.slices.len() > 60 { 7 } else { 12 }, (560 / self.columns.len().max(1)).clamp(6, 60));
        let (w, h) = ((LEFT + column * self.columns.len() + 30).max(360), TOP + row * self.slices.len() + 40);
        let seen = self.columns.iter().flat_map(|(_, _, ranks)| ranks).copied().max();
        let most = f64::from(seen.unwrap_or(1).max(1));
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"9\" fill=\"#333\">\n\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n<text x=\"10\" y=\"18\" font-size=\"13\">Awake components by slice and update</text>\n"
        );
        let totals: Vec<u32> = self.columns.iter().map(|(_, _, r)| r.iter().sum()).collect();
        let top = f64::from(totals.iter().copied().max().unwrap_or(1).max(1));
        let centre = |i: usize| LEFT + i * column + column / 2;
        let line: Vec<String> = totals
            .iter()
            .enumerate()
            .map(|(i, t)| format!("{},{:.1}", centre(i), 85.0 - 50.0 * f64::from(*t) / top))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#4a1486\" stroke-width=\"1.5\"/>",
            line.join(" ")
        );
        let ends = [(0, totals.first()), (totals.len().saturating_sub(1), totals.last())];
        for (i, total) in ends.iter().filter_map(|(i, t)| Some((*i, (*t)?))) {
            let y = 80.0 - 50.0 * f64::from(*total) / top;
            let _ = writeln!(out, "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"middle\">{total}</text>", centre(i));
        }
        let _ = writeln!(out, "<text x=\"{}\" y=\"60\" text-anchor=\"end\">all slices</text>", LEFT - 8);
        for (i, (step, fate, ranks)) in self.columns.iter().enumerate() {
            let every = 1 + 30 / column;
            if i % every == 0 {
                let _ =
                    writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", centre(i), TOP - 6);
            }
            for (s, rank) in ranks.iter().enumerate() {
                let (r, g, b) = shade(f64::from(*rank) / most);
                let _ = writeln!(
                    out,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#{r:02x}{g:02x}{b:02x}\"><title>{} after update {step}{}{fate}: {rank}</title></rect>",
                    LEFT + i * column,
                    TOP + s * row,
                    column - 1,
                    row - 1,
                    self.slices.get(s).map_or("", String::as_str),
                    if fate.is_empty() { "" } else { ", " },
                );
            }
        }
        for (s, name) in self.slices.iter().enumerate().filter(|(s, _)| row > 8 || s % 3 == 0) {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>",
                LEFT - 8,
                TOP + s * row + row - 1
            );
        }
        let foot = h - 22;
        for i in 0..=10 {
            let (r, g, b) = shade(i as f64 / 10.0);
            let _ = writeln!(
                out,
                "<rect x=\"{}\" y=\"{foot}\" width=\"14\" height=\"9\" fill=\"#{r:02x}{g:02x}{b:02x}\"/>",
                LEFT + 14 * i
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">0</text><text x=\"{}\" y=\"{}\">{most}</text>\n</svg>",
            LEFT - 4,
            foot + 8,
            LEFT + 160,
            foot + 8
        );
        out
    }
}

/// White to purple.
fn shade(x: f64) -> (u8, u8, u8) {
    let mix = |from: f64, to: f64| (from + (to - from) * x.clamp(0.0, 1.0)) as u8;
    (mix(247.0, 74.0), mix(244.0, 20.0), mix(251.0, 134.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_history_is_read_and_drawn() {
        let text = "{\"step\":0,\"slices\":[\"model.layers.0.self_attn.q_proj\",\"model.layers.1.mlp.up_proj\"],\"most\":[4,4],\"awake\":[[0,1],[0,1]]}\n\
            {\"step\":10,\"decision\":1,\"fate\":\"committed\",\"reason\":\"\",\"awake\":[[0,1,2],[0]]}\n";
        let h = History::read(text).unwrap();
        assert_eq!(h.columns[1], (10, "committed".into(), vec![3, 1]));
        let svg = h.svg();
        assert!(svg.contains("blocks.0.attn.q_proj after update 10, committed: 3") && svg.ends_with("</svg>\n"));
        assert!(History::read("nonsense").is_none());
    }
}

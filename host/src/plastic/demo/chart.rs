//! The pictures of a demo as text: bars for the lines and a small chart for the end, in unicode
//! blocks or in plain ASCII. Pure functions of figures; nothing here can fail.

use std::fmt::Write;

/// Characters a picture is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Eighths of blocks.
    Blocks,
    /// Plain ASCII.
    Ascii,
}

/// Blocks from one to eight eighths, growing to the right.
const RIGHT: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
/// The same, growing upwards.
const UP: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Ink {
    /// Blocks where the locale says UTF-8, as the C library reads it: the first of `LC_ALL`, `LC_CTYPE`
    /// and `LANG` that is set and not empty decides.
    pub fn of_locale(get: impl Fn(&str) -> Option<String>) -> Ink {
        let named = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| get(name).filter(|v| !v.is_empty()));
        let name = named.unwrap_or_default().to_ascii_lowercase();
        if name.contains("utf-8") || name.contains("utf8") { Ink::Blocks } else { Ink::Ascii }
    }

    /// A horizontal bar of `width` characters of which `share` (0 to 1) is filled.
    pub fn bar(self, share: f64, width: usize) -> String {
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        let mut out = String::with_capacity(3 * width);
        match self {
            Ink::Ascii => {
                let filled = (share * width as f64).round() as usize;
                (0..width).for_each(|i| out.push(if i < filled { '#' } else { '.' }));
            }
            Ink::Blocks => {
                let eighths = (share * 8.0 * width as f64).round() as usize;
                for i in 0..width {
                    out.push(match eighths.saturating_sub(8 * i) {
                        0 => ' ',
                        n => RIGHT[n.min(8) - 1],
                    });
                }
            }
        }
        out
    }

    /// Lines of a column chart, from the top: one column of `wide` characters a value, scaled so that
    /// `low` is the lowest visible bar and `high` fills the height.
    pub fn columns(self, values: &[f64], low: f64, high: f64, height: usize, wide: usize) -> Vec<String> {
        let parts = if self == Ink::Blocks { 8 } else { 1 };
        let most = (parts * height) as f64;
        let span = high - low;
        let tall = |v: f64| {
            let share = if span > 0.0 { ((v - low) / span).clamp(0.0, 1.0) } else { 1.0 };
            // The lowest value is still to be seen.
            (share * most).round().max(1.0) as usize
        };
        let mut lines = vec![String::new(); height];
        for (row, line) in lines.iter_mut().enumerate() {
            let below = parts * (height - 1 - row);
            for v in values {
                let c = match (tall(*v).saturating_sub(below), self) {
                    (0, _) => ' ',
                    (_, Ink::Ascii) => '#',
                    (n, Ink::Blocks) => UP[n.min(8) - 1],
                };
                line.extend(std::iter::repeat_n(c, wide.saturating_sub(1).max(1)));
                if wide > 1 {
                    line.push(' ');
                }
            }
        }
        lines
    }
}

/// One row of the chart at the end.
pub struct Row<'a> {
    /// What it shows, with its unit.
    pub name: &'a str,
    /// A value a step.
    pub values: &'a [f64],
    /// Digits behind the point of its labels.
    pub digits: usize,
    /// Where its scale begins: 0, or its lowest value where that hides what moves.
    pub from_zero: bool,
}

/// A chart of several rows over the same steps, each with its lowest and highest value beside it.
pub fn chart(rows: &[Row], ink: Ink, height: usize, room: usize) -> String {
    const LABEL: usize = 18;
    const FIGURE: usize = 9;
    let mut out = String::new();
    let steps = rows.iter().map(|r| r.values.len()).max().unwrap_or(0);
    let wide = (room.saturating_sub(LABEL + FIGURE + 2) / steps.max(1)).clamp(1, 5);
    let axis = if ink == Ink::Blocks { '│' } else { '|' };
    for row in rows {
        let finite = || row.values.iter().copied().filter(|v| v.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        if !low.is_finite() {
            continue;
        }
        let floor = if row.from_zero { 0.0 } else { low };
        let lines = ink.columns(row.values, floor, high, height, wide);
        for (i, line) in lines.iter().enumerate() {
            let name = if i == 0 { row.name } else { "" };
            let figure = match i {
                0 => format!("{high:.*}", row.digits),
                i if i + 1 == lines.len() => format!("{floor:.*}", row.digits),
                _ => String::new(),
            };
            let _ = writeln!(out, "{name:<LABEL$}{figure:>FIGURE$} {axis}{}", line.trim_end());
        }
    }
    // Numbers of steps, as many as have room.
    let every = if wide >= 3 || steps < 10 { 1 } else { 5 };
    let mut numbers = String::new();
    for step in (1..=steps).filter(|s| s % every == 0 || *s == 1) {
        let at = (step - 1) * wide;
        if numbers.is_empty() || at > numbers.len() {
            let _ = write!(numbers, "{:at$}{step}", "", at = at - numbers.len());
        }
    }
    let _ = writeln!(out, "{:<LABEL$}{:>FIGURE$}  {numbers}", "step", "");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(Ink::Ascii.bar(0.5, 8), "####....");
        assert_eq!(Ink::Blocks.bar(0.5, 4), "██  ");
        assert_eq!(Ink::Blocks.bar(0.53125, 4), "██▏ ");
        assert_eq!(Ink::Blocks.bar(7.0, 2), "██");
        assert_eq!(Ink::Ascii.bar(f64::NAN, 3), "...");
    }

    #[test]
    fn columns_stand_on_the_floor() {
        assert_eq!(Ink::Ascii.columns(&[0.0, 1.0, 2.0], 0.0, 2.0, 2, 1), ["  #", "###"]);
        assert_eq!(Ink::Blocks.columns(&[4.0, 16.0], 0.0, 16.0, 2, 2), ["  █ ", "▄ █ "]);
        // A flat line is full, not empty.
        assert_eq!(Ink::Ascii.columns(&[3.0, 3.0], 3.0, 3.0, 1, 1), ["##"]);
    }

    #[test]
    fn the_locale_decides_the_ink() {
        let of = |pairs: &[(&str, &str)]| {
            Ink::of_locale(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[("LANG", "C.UTF-8")]), Ink::Blocks);
        assert_eq!(of(&[("LANG", "C.UTF-8"), ("LC_ALL", "C")]), Ink::Ascii);
        assert_eq!(of(&[("LANG", "de_DE.utf8"), ("LC_ALL", "")]), Ink::Blocks);
        assert_eq!(of(&[]), Ink::Ascii);
    }

    #[test]
    fn the_chart_in_ascii() {
        let rows = [
            Row { name: "load", values: &[1.0, 4.0, 2.0], digits: 0, from_zero: true },
            Row { name: "awake, %", values: &[100.0, 90.0, 95.0], digits: 1, from_zero: false },
        ];
        let expected = "\
load                      4 |     ####
                          0 |#### #### ####
awake, %              100.0 |####
                       90.0 |#### #### ####
step                         1    2    3
";
        assert_eq!(chart(&rows, Ink::Ascii, 2, 80), expected);
    }

    proptest! {
        #[test]
        fn every_line_of_a_picture_has_its_width(share in -1.0f64..2.0, width in 1usize..40) {
            for ink in [Ink::Ascii, Ink::Blocks] {
                prop_assert_eq!(ink.bar(share, width).chars().count(), width);
            }
        }

        #[test]
        fn a_chart_fits(values in proptest::collection::vec(0.0f64..1e6, 1..40), room in 80usize..120) {
            let rows = [Row { name: "x", values: &values, digits: 1, from_zero: true }];
            for ink in [Ink::Ascii, Ink::Blocks] {
                for line in chart(&rows, ink, 3, room).lines() {
                    prop_assert!(line.chars().count() <= room, "{}", line);
                }
            }
        }
    }
}

//! Less of a large text: as much as some windows need, and spread evenly, so that gigabytes need not be tokenised
//! for a hundred windows. Texts below the bound stay as they are. Never fails.

use super::rows::Row;

/// Texts of up to so many bytes are never thinned.
const ALWAYS: u64 = 4 << 20;
/// Text kept for each token that is wanted: four times what tokens of prose have, so that ends left out do not matter.
const BYTES_PER_TOKEN: u64 = 16;
/// Running text is cut into pieces of at least this size.
const PIECE: usize = 64 << 10;

/// How much of a text was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Thinned {
    /// Bytes of text that were kept, evenly spread.
    pub bytes: u64,
    /// Bytes of text there were.
    pub of: u64,
}

/// Thins rows to what `windows` windows of `window` tokens need; `None` where all are kept, as with no limit on windows.
pub fn thin(rows: &mut Vec<(usize, Row)>, windows: usize, window: usize) -> Option<Thinned> {
    let wanted = (windows as u64).saturating_mul(window as u64).saturating_mul(BYTES_PER_TOKEN).max(ALWAYS);
    let of: u64 = rows.iter().map(|(_, row)| size(row)).sum();
    if windows == 0 || of <= wanted {
        return None;
    }
    let piece = window.saturating_mul(2 * BYTES_PER_TOKEN as usize).max(PIECE);
    let share = wanted as f64 / of as f64;
    let (mut kept, mut bytes, mut credit) = (Vec::new(), 0, 0.0);
    // What is not kept of one piece counts for the next, so that what is kept lies evenly.
    let mut offer = |line: usize, size: u64, row: &mut dyn FnMut() -> Row| {
        credit += size as f64 * share;
        if credit >= size as f64 / 2.0 {
            credit -= size as f64;
            bytes += size;
            kept.push((line, row()));
        }
    };
    for (line, row) in rows.iter() {
        match row {
            Row::Text(text) => {
                for part in pieces(text, piece) {
                    offer(*line, part.len() as u64, &mut || Row::Text(part.to_owned()));
                }
            }
            other => offer(*line, size(other), &mut || other.clone()),
        }
    }
    // A few huge conversations, none of which fits: better slow than nothing.
    if kept.is_empty() {
        return None;
    }
    *rows = kept;
    Some(Thinned { bytes, of })
}

fn size(row: &Row) -> u64 {
    match row {
        Row::Text(text) => text.len() as u64,
        Row::Tokens(ids) => 4 * ids.len() as u64,
        Row::Answer { prompt, completion } => (prompt.len() + completion.len()) as u64,
        Row::Messages(turns) => {
            let content = |t: &serde_json::Value| t.get("content").and_then(|c| c.as_str()).map_or(0, str::len);
            turns.iter().map(content).sum::<usize>() as u64
        }
    }
}

/// A text in pieces that end after a line, or without lines between two characters.
fn pieces(text: &str, piece: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = rest.ceil_char_boundary(piece);
        let tail = rest.get(from..).unwrap_or_default();
        let reach = tail.get(..tail.floor_char_boundary(piece)).unwrap_or_default();
        let end = from + reach.find('\n').map_or(0, |i| i + 1);
        let (first, more) = rest.split_at_checked(end)?;
        rest = more;
        (!first.is_empty()).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn small_texts_and_all_windows_stay_whole() {
        let rows = vec![(1, Row::Text("a\n".repeat(ALWAYS as usize / 2)))];
        let mut same = rows.clone();
        assert_eq!(thin(&mut same, 1, 8), None);
        assert_eq!(same, rows);
        let mut all = vec![(1, Row::Text("a\n".repeat(ALWAYS as usize)))];
        assert_eq!(thin(&mut all, 0, 8), None);
        assert_eq!(thin(&mut all, 100_000, 8), None, "that many windows need all of it");
    }

    #[test]
    fn one_long_text_is_thinned_evenly_and_between_lines() {
        let text: String = (0..3_000_000).map(|i| format!("{i}\n")).collect();
        let mut rows = vec![(1, Row::Text(text.clone()))];
        let thinned = thin(&mut rows, 100, 128).unwrap();
        assert_eq!(thinned.of, text.len() as u64);
        assert!(thinned.bytes.abs_diff(ALWAYS) < 100_000, "{thinned:?}");
        let firsts: Vec<usize> = rows
            .iter()
            .map(|(_, row)| match row {
                Row::Text(t) => t.ends_with('\n').then(|| t.lines().next().unwrap().parse().unwrap()).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        let gaps: Vec<usize> = firsts.windows(2).map(|w| w[1] - w[0]).collect();
        let (least, most) = (*gaps.iter().min().unwrap(), *gaps.iter().max().unwrap());
        assert!(firsts.len() > 50 && most < 2 * least + 20_000, "{firsts:?}");
    }

    #[test]
    fn short_rows_are_kept_whole_and_characters_too() {
        let row = |i: usize| (i, Row::Answer { prompt: "p".repeat(100), completion: "c".repeat(i % 90) });
        let mut rows: Vec<(usize, Row)> = (1..100_000).map(row).collect();
        let thinned = thin(&mut rows, 10, 64).unwrap();
        assert!(thinned.bytes.abs_diff(ALWAYS) < 1000, "{thinned:?}");
        assert!(rows.iter().all(|(i, r)| row(*i).1 == *r));
        let text = "äöü".repeat(50_000);
        assert_eq!(pieces(&text, PIECE + 1).collect::<String>(), text);
        assert_eq!(pieces("", PIECE).count(), 0);
        assert_eq!(pieces("ab\ncd", 1).collect::<Vec<_>>(), ["ab\n".get(..1).unwrap(), "b\n", "c", "d"]);
    }

    #[test]
    fn one_huge_row_stays() {
        let mut rows = vec![(1, Row::Answer { prompt: "p".repeat(9 << 20), completion: String::new() })];
        assert_eq!(thin(&mut rows, 1, 64), None);
        assert_eq!(rows.len(), 1);
    }
}

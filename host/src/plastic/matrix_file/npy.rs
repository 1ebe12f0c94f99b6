//! NumPy's `.npy` format, versions 1 to 3: one matrix of float16, float32 or float64.
//!
//! Layout: `\x93NUMPY`, two bytes of version, the length of the header (2 bytes in version 1, else 4, little-endian),
//! the header, a Python dictionary literal with exactly the keys `descr`, `fortran_order` and `shape`, then
//! the numbers. The literal is read by a parser for just that, never evaluated. Refused: objects, integers, structured types, other
//! than two dimensions, empty arrays, numbers that are not finite, files shorter or longer than their shape needs.

use super::{Error, Float, Layout, Matrix, Result};
use crate::atomic::{FileError, open_regular};
use std::io::{BufReader, Read};
use std::path::Path;

/// What every file begins with.
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read; NumPy itself reads 10,000 bytes of one it does not trust.
const MAX_HEADER: u64 = 1 << 16;

/// Reads a file.
///
/// # Errors
/// When it cannot be read or is no matrix of finite floats.
pub fn read(path: &Path) -> Result<Matrix> {
    let file = open_regular(path).map_err(FileError::at("reading", path))?;
    let size = file.metadata().map_err(FileError::at("reading", path))?.len();
    decode(&mut BufReader::new(file), size, path, "")
}

/// Reads `size` bytes of a stream. `within` names the member of an archive, as the beginning of a sentence.
pub(super) fn decode(from: &mut impl Read, size: u64, path: &Path, within: &str) -> Result<Matrix> {
    let bad = |reason: String| Error::bad(path, format!("{within}{reason}"));
    let io = FileError::at("reading", path);
    let mut start = [0u8; 8];
    if size < 10 {
        return Err(bad(format!("is {size} bytes long: truncated, or no .npy data")));
    }
    let (header, offset) = (|| -> std::io::Result<std::result::Result<(Vec<u8>, u64), String>> {
        from.read_exact(&mut start)?;
        let (magic, version) = start.split_at(6);
        if magic != MAGIC {
            return Ok(Err("does not begin with \\x93NUMPY: it is no .npy data; save it with numpy.save".into()));
        }
        let (length, width) = match version {
            [1, 0] => {
                let mut b = [0u8; 2];
                from.read_exact(&mut b)?;
                (u64::from(u16::from_le_bytes(b)), 2)
            }
            [2 | 3, 0] => {
                let mut b = [0u8; 4];
                from.read_exact(&mut b)?;
                (u64::from(u32::from_le_bytes(b)), 4)
            }
            other => return Ok(Err(format!("has format version {other:?}; versions 1.0, 2.0 and 3.0 are read"))),
        };
        let offset = 8 + width + length;
        if length > MAX_HEADER || offset > size {
            return Ok(Err(format!(
                "states a header of {length} bytes; it is {size} bytes long, truncated or damaged"
            )));
        }
        let mut header = vec![0u8; length as usize];
        from.read_exact(&mut header)?;
        Ok(Ok((header, offset)))
    })()
    .map_err(io)?
    .map_err(bad)?;
    let (layout, need) = parse(&header).map_err(bad)?;
    let held = size - offset;
    if held != need {
        let how = if held < need { "it is truncated" } else { "it is damaged or holds more than one array" };
        return Err(bad(format!(
            "holds {held} bytes of numbers; shape [{}, {}] of {} needs {need}: {how}",
            layout.rows,
            layout.cols,
            layout.float.name()
        )));
    }
    let mut bytes = Vec::new();
    from.by_ref().take(need).read_to_end(&mut bytes).map_err(FileError::at("reading", path))?;
    // An archive compares its checksum where it finds the end.
    let more = from.read(&mut [0u8; 1]).map_err(FileError::at("reading", path))?;
    if bytes.len() as u64 != need || more != 0 {
        return Err(bad(format!("does not hold the {need} bytes of numbers that it states: it is damaged")));
    }
    let weight = layout.decode(&bytes).map_err(bad)?;
    Ok(Matrix { weight, stored_as: layout.float.name().into(), packed: None, stored_bytes: need })
}

/// A file with these numbers, row by row, in version 1.0.
pub fn to_bytes(numbers: &[f32], [rows, cols]: [usize; 2]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // The numbers begin at a multiple of 64 bytes, behind a line end.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut out = Vec::with_capacity(10 + header.len() + 4 * numbers.len());
    out.extend(MAGIC);
    out.extend([1, 0]);
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    out
}

/// The layout that a header describes, and the bytes it takes.
fn parse(header: &[u8]) -> std::result::Result<(Layout, u64), String> {
    let text = std::str::from_utf8(header).map_err(|_| "has a header that is no text: it is damaged".to_owned())?;
    let mut p = Parser { rest: text };
    let broken = |at: &str| {
        let at: String = at.chars().take(30).collect();
        format!("has a header that cannot be read at `{}`; expected descr, fortran_order and shape", at.escape_debug())
    };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    p.token("{").ok_or_else(|| broken(p.rest))?;
    while p.token("}").is_none() {
        let key = p.string().ok_or_else(|| broken(p.rest))?;
        p.token(":").ok_or_else(|| broken(p.rest))?;
        let twice = match key {
            "descr" if p.peek("[") => return Err("has a structured type; expected plain floats (f2, f4 or f8)".into()),
            "descr" => descr.replace(p.string().ok_or_else(|| broken(p.rest))?).is_some(),
            "fortran_order" => fortran.replace(p.boolean().ok_or_else(|| broken(p.rest))?).is_some(),
            "shape" => shape.replace(p.tuple().ok_or_else(|| broken(p.rest))?).is_some(),
            other => return Err(format!("has the unknown header field `{other}`")),
        };
        if twice {
            return Err(format!("has the header field `{key}` twice"));
        }
        if p.token(",").is_none() && !p.peek("}") {
            return Err(broken(p.rest));
        }
    }
    if !p.rest.trim().is_empty() {
        return Err(broken(p.rest));
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
        return Err("has a header without descr, fortran_order or shape".into());
    };
    let (order, kind) = descr.split_at_checked(1).unwrap_or(("", descr));
    let float = match (order, kind) {
        ("<" | ">", "f2") => Float::F16,
        ("<" | ">", "f4") => Float::F32,
        ("<" | ">", "f8") => Float::F64,
        ("|", "O") => return Err("holds Python objects, which are not read; save an array of floats".into()),
        _ => return Err(format!("holds numbers of type `{descr}`; expected float16, float32 or float64 (f2, f4, f8)")),
    };
    Layout::checked(float, order == ">", fortran, &shape)
}

/// What is left of a header.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self, token: &str) -> bool {
        self.rest.trim_start().starts_with(token)
    }

    fn token(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, rest) = rest.get(1..)?.split_once(quote)?;
        self.rest = rest;
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        match self.token("True") {
            Some(()) => Some(true),
            None => self.token("False").map(|()| false),
        }
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        self.token("(")?;
        let mut out = Vec::new();
        while self.token(")").is_none() {
            let rest = self.rest.trim_start();
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let (number, rest) = rest.split_at(digits);
            out.push(number.parse().ok()?);
            self.rest = rest;
            if self.token(",").is_none() && !self.peek(")") {
                return None;
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::to_f32;
    use super::*;
    use proptest::prelude::*;

    fn file(version: u8, header: &str, numbers: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([version, 0]);
        match version {
            1 => out.extend((header.len() as u16).to_le_bytes()),
            _ => out.extend((header.len() as u32).to_le_bytes()),
        }
        out.extend(header.as_bytes());
        out.extend(numbers);
        out
    }

    fn decoded(bytes: &[u8]) -> Result<Matrix> {
        decode(&mut &bytes[..], bytes.len() as u64, Path::new("w.npy"), "")
    }

    fn refused(bytes: &[u8]) -> String {
        decoded(bytes).unwrap_err().to_string()
    }

    const PLAIN: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";

    fn six() -> Vec<u8> {
        (1..=6).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn versions_types_and_orders() {
        for version in [1, 2, 3] {
            assert_eq!(
                to_f32(&decoded(&file(version, PLAIN, &six())).unwrap().weight).unwrap(),
                [1., 2., 3., 4., 5., 6.]
            );
        }
        let fortran = PLAIN.replace("False", "True");
        assert_eq!(to_f32(&decoded(&file(1, &fortran, &six())).unwrap().weight).unwrap(), [1., 3., 5., 2., 4., 6.]);
        let big: Vec<u8> = (1..=6).flat_map(|i| (i as f32).to_be_bytes()).collect();
        let m = decoded(&file(1, &PLAIN.replace('<', ">"), &big)).unwrap();
        assert_eq!(to_f32(&m.weight).unwrap(), [1., 2., 3., 4., 5., 6.]);
        let half: Vec<u8> = (1..=6).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
        let m = decoded(&file(1, &PLAIN.replace("f4", "f2"), &half)).unwrap();
        assert_eq!((to_f32(&m.weight).unwrap()[5], m.stored_bytes, m.stored_as.as_str()), (6.0, 12, "F16"));
        let double: Vec<u8> = (1..=6).flat_map(|i| (f64::from(i) / 3.0).to_le_bytes()).collect();
        let m = decoded(&file(1, &PLAIN.replace("f4", "f8"), &double)).unwrap();
        assert_eq!(crate::mlx::spectral::to_vec(&m.weight).unwrap()[1], 2.0 / 3.0);
        // Spaces, other quotes and another order of the fields are Python's own business.
        let odd = "{ \"shape\":(2,3),'fortran_order' : False,'descr':'<f4'}";
        assert_eq!(decoded(&file(1, odd, &six())).unwrap().rows(), 2);
    }

    #[test]
    fn what_is_no_matrix_is_refused_in_words() {
        let numbers = six();
        let with = |from: &str, to: &str| file(1, &PLAIN.replace(from, to), &numbers);
        for (bytes, why) in [
            (b"\x93NUM".to_vec(), "4 bytes long"),
            (b"PK\x03\x04xxxxxxxxxxx".to_vec(), "no .npy data"),
            (file(9, PLAIN, &numbers), "format version [9, 0]"),
            (file(1, PLAIN, &numbers[..20]), "it is truncated"),
            (file(1, PLAIN, &[numbers.clone(), vec![0]].concat()), "more than one array"),
            (with("(2, 3)", "(4294967296, 4294967296)"), "elements can be held"),
            (with("(2, 3)", "(200000, 3)"), "needs 2400000: it is truncated"),
            (with("(2, 3)", "(6,)"), "has 1 dimensions"),
            (with("(2, 3)", "(1, 2, 3)"), "has 3 dimensions"),
            (with("(2, 3)", "(0, 3)"), "is empty"),
            (with("(2, 3)", "(99999999999999999999, 3)"), "cannot be read"),
            (with("(2, 3)", "(-2, 3)"), "cannot be read"),
            (with("<f4", "|O"), "Python objects"),
            (with("<f4", "<i4"), "type `<i4`"),
            (with("<f4", "<c8"), "type `<c8`"),
            (with("'<f4'", "[('a', '<f4')]"), "structured"),
            (with("'fortran_order': False", "'descr': '<f4'"), "twice"),
            (with("'shape'", "'form'"), "unknown header field `form`"),
            (with("'shape': (2, 3), ", ""), "without descr"),
            (with("}", "} + 1"), "cannot be read"),
            (with("False", "0"), "cannot be read"),
        ] {
            let text = refused(&bytes);
            assert!(text.contains(why) && text.starts_with("w.npy: "), "{why:?} in {text}");
        }
        let mut long = MAGIC.to_vec();
        long.extend([2, 0, 255, 255, 255, 255]);
        assert!(refused(&long).contains("states a header of 4294967295 bytes"));
        let mut nan = numbers.clone();
        nan[16..20].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(refused(&file(1, PLAIN, &nan)).contains("NaN in row 1, column 1"));
        assert!(refused(&file(1, &PLAIN.replace("False", "True"), &nan)).contains("NaN in row 0, column 2"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), begin in any::<bool>()) {
            if begin {
                bytes.splice(0..0, file(1, "", &[])[..8].to_vec());
            }
            let _ = decoded(&bytes);
        }

        #[test]
        fn damaged_headers_never_panic(at in 0usize..60, by in any::<u8>()) {
            let mut bytes = file(1, PLAIN, &six());
            bytes[10 + at % PLAIN.len()] = by;
            let _ = decoded(&bytes);
        }

        #[test]
        fn what_is_written_is_read(rows in 1usize..9, cols in 1usize..9) {
            let numbers: Vec<f32> = (0..rows * cols).map(|i| i as f32 / 7.0).collect();
            let bytes = to_bytes(&numbers, [rows, cols]);
            prop_assert_eq!((bytes.len() - 4 * numbers.len()) % 64, 0);
            let m = decoded(&bytes).unwrap();
            prop_assert_eq!((m.rows(), m.cols()), (rows, cols));
            prop_assert_eq!(to_f32(&m.weight).unwrap(), numbers);
        }
    }
}

//! The header of a safetensors file: what it holds, checked against the file before anything is allocated.
//!
//! Layout: 8 bytes little-endian header length, a JSON object of that length, then the tensors' bytes.

use super::error::{Error, Result};
use serde::de::{MapAccess, Visitor};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Largest header that is read; the safetensors crate draws the line at the same place.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type as the file spells it: `F32`, `BF16`, `U32`, ...
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First byte, counted from the end of the header.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A JSON object as a list of pairs, so that a repeated name is seen.
struct Pairs(Vec<(String, serde_json::Value)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut m: A) -> std::result::Result<Pairs, A::Error> {
                let mut out = Vec::new();
                while let Some(pair) = m.next_entry()? {
                    out.push(pair);
                }
                Ok(Pairs(out))
            }
        }
        d.deserialize_map(V)
    }
}

/// Bytes of one element, by the format's own names.
fn width(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" => 8,
        _ => return None,
    })
}

/// Reads and checks the header of `path`.
///
/// # Errors
/// When the file is shorter than it says, the header too large or no JSON, a tensor repeated, of an
/// unknown type, outside the file, over another one, or of a size that its shape contradicts.
pub fn read_header(path: &Path) -> Result<BTreeMap<String, TensorInfo>> {
    let mut file = crate::atomic::open_regular(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let bad = |reason: String| Error::file(path, reason);
    let truncated = "the file is truncated or no safetensors file: fetch it again";
    let mut prefix = [0u8; 8];
    if size < 8 {
        return Err(bad(format!("{size} bytes long; {truncated}")));
    }
    file.read_exact(&mut prefix).map_err(Error::io(path))?;
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER {
        return Err(bad(format!("states a header of {len} bytes; at most {MAX_HEADER} are read; {truncated}")));
    }
    let Some(data) = size.checked_sub(8 + len) else {
        return Err(bad(format!("states a header of {len} bytes but is {size} bytes long; {truncated}")));
    };
    let mut header = vec![0u8; len as usize];
    file.read_exact(&mut header).map_err(Error::io(path))?;
    let Pairs(pairs) =
        serde_json::from_slice(&header).map_err(|e| bad(format!("the header is not valid JSON: {e}")))?;

    let mut tensors = BTreeMap::new();
    for (name, value) in pairs.into_iter().filter(|(n, _)| n != "__metadata__") {
        let info = tensor(path, &name, value, data)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Error::tensor(path, name, "is there twice"));
        }
    }
    no_overlap(path, &tensors)?;
    Ok(tensors)
}

fn tensor(path: &Path, name: &str, value: serde_json::Value, data: u64) -> Result<TensorInfo> {
    let bad = |reason: String| Error::tensor(path, name, reason);
    let raw: RawTensor = serde_json::from_value(value).map_err(|e| bad(format!("is described badly: {e}")))?;
    let width = width(&raw.dtype).ok_or_else(|| bad(format!("has the unknown type {}", raw.dtype)))?;
    let elements = raw.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let bytes = elements
        .and_then(|n| n.checked_mul(width))
        .ok_or_else(|| bad(format!("has the impossible shape {:?}", raw.shape)))?;
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data {
        return Err(bad(format!(
            "lies at bytes {begin}..{end} but the file holds {data} bytes of data: it is truncated or damaged; fetch it again"
        )));
    }
    if end - begin != bytes {
        return Err(bad(format!("has {} bytes; shape {:?} of {} needs {bytes}", end - begin, raw.shape, raw.dtype)));
    }
    Ok(TensorInfo { dtype: raw.dtype, shape: raw.shape.iter().map(|d| *d as usize).collect(), begin, end })
}

fn no_overlap(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, t)| t.begin < t.end).collect();
    order.sort_by_key(|(_, t)| t.begin);
    for pair in order.windows(2) {
        if let [(a, x), (b, y)] = pair
            && y.begin < x.end
        {
            return Err(Error::tensor(path, *b, format!("overlaps tensor `{a}`")));
        }
    }
    Ok(())
}

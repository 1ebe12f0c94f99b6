//! GGUF files: a strict reader of metadata and tensor table, and the import into MLX layout.
//!
//! The reader takes versions 2 and 3, little-endian. Every count, length, offset and size is checked
//! against the file before anything is allocated or read, so a damaged or hostile file ends in an
//! [`Error`] that names what is wrong, never in a panic or a huge allocation. Tensor data is read one
//! tensor at a time. Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod blocks;
mod config;
mod expand;
mod import;
mod tensors;
mod tokenizer;

pub use blocks::BlockType;
pub use import::{ImportOptions, import};

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// No model has more; a larger count is a damaged file.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_ARRAY: u64 = 1 << 24;
/// Keys and tensor names; other strings (a chat template) may be longer.
const MAX_NAME: u64 = 1 << 16;
const MAX_STRING: u64 = 1 << 24;

/// A GGUF file could not be read or imported.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", .path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub what: String,
}

/// Why a file is no good, before its name is known.
type Reason<T> = Result<T, String>;

/// One metadata value. Integers of every width are widened, floats too.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unsigned integers.
    Uint(u64),
    /// Signed integers.
    Int(i64),
    /// 32-bit floats.
    F32(f32),
    /// 64-bit floats.
    F64(f64),
    /// Booleans.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Arrays of text.
    Strings(Vec<String>),
    /// Arrays of integers (and booleans, as 0 and 1).
    Ints(Vec<i64>),
    /// Arrays of floats.
    Floats(Vec<f64>),
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// llama.cpp's name (`blk.0.attn_q.weight`).
    pub name: String,
    /// Outermost dimension first, `[rows, cols]` for matrices (the file has them reversed).
    pub shape: Vec<u64>,
    /// How values are stored.
    pub block: BlockType,
    /// First byte, from the beginning of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Rows of a matrix: the product of all dimensions but the last.
    pub fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).product()
    }

    /// Values in a row.
    pub fn cols(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Metadata and tensor table of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in the order of the file's table.
    pub tensors: Vec<Tensor>,
}

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// Where the file cannot be read or is not a sound GGUF file.
    pub fn open(path: &Path) -> Result<(Header, std::fs::File), Error> {
        let fail = |what: String| Error { path: path.to_owned(), what };
        let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot be opened ({e})")))?;
        let header = Header::read(std::io::BufReader::with_capacity(1 << 16, &file)).map_err(fail)?;
        Ok((header, file))
    }

    /// Reads a header from anything that can seek; the error says what is wrong.
    ///
    /// # Errors
    /// Where reading fails or the bytes are not a sound GGUF file.
    pub fn read(mut source: impl Read + Seek) -> Result<Header, String> {
        let length = source.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
        source.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
        Reader { source, length, at: 0 }.header()
    }

    /// A text value. `Ok(None)` where the key is absent.
    pub(crate) fn string(&self, key: &str) -> Reason<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(key, "text", other)),
        }
    }

    /// An integer value that is not negative.
    pub(crate) fn uint(&self, key: &str) -> Reason<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Uint(n)) => Ok(Some(*n)),
            Some(Value::Int(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(other) => Err(wrong_type(key, "a number that is not negative", other)),
        }
    }

    /// A float as the decimal number it was written from: `1e-05` for the f32 nearest to it.
    pub(crate) fn float(&self, key: &str) -> Reason<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            // Rust prints the shortest decimal that gives the same f32 back.
            Some(Value::F32(x)) if x.is_finite() => Ok(x.to_string().parse().ok()),
            Some(Value::F64(x)) if x.is_finite() => Ok(Some(*x)),
            Some(other) => Err(wrong_type(key, "a finite number", other)),
        }
    }

    /// A boolean value.
    pub(crate) fn bool(&self, key: &str) -> Reason<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong_type(key, "true or false", other)),
        }
    }

    /// An array of text.
    pub(crate) fn strings(&self, key: &str) -> Reason<Option<&[String]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(key, "an array of text", other)),
        }
    }

    /// An array of integers.
    pub(crate) fn ints(&self, key: &str) -> Reason<Option<&[i64]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Ints(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(key, "an array of integers", other)),
        }
    }
}

fn wrong_type(key: &str, expected: &str, found: &Value) -> String {
    let found = match found {
        Value::Uint(n) => format!("the number {n}"),
        Value::Int(n) => format!("the number {n}"),
        Value::F32(x) => format!("the number {x}"),
        Value::F64(x) => format!("the number {x}"),
        Value::Bool(b) => format!("{b}"),
        Value::String(_) => "text".into(),
        Value::Strings(v) => format!("an array of {} texts", v.len()),
        Value::Ints(v) => format!("an array of {} integers", v.len()),
        Value::Floats(v) => format!("an array of {} floats", v.len()),
    };
    format!("metadata key {key} holds {found} where {expected} is expected")
}

/// Types of metadata values, as the file numbers them.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

/// Bytes of one value of a fixed-size type.
fn type_size(kind: u32) -> Option<u64> {
    match kind {
        UINT8 | INT8 | BOOL => Some(1),
        UINT16 | INT16 => Some(2),
        UINT32 | INT32 | FLOAT32 => Some(4),
        UINT64 | INT64 | FLOAT64 => Some(8),
        _ => None,
    }
}

struct Reader<R> {
    source: R,
    length: u64,
    at: u64,
}

impl<R: Read> Reader<R> {
    fn header(mut self) -> Reason<Header> {
        let magic: [u8; 4] = self.bytes("the magic number")?;
        if &magic != b"GGUF" {
            return Err(format!("is not a GGUF file: it begins with {} instead of \"GGUF\"", magic.escape_ascii()));
        }
        match self.u32("the version")? {
            2 | 3 => {}
            v if v.swap_bytes() == 3 || v.swap_bytes() == 2 => {
                return Err("is a big-endian GGUF file; only little-endian ones are read: convert the model again \
                            without --bigendian"
                    .into());
            }
            v => return Err(format!("is GGUF version {v}; versions 2 and 3 are read: convert the model again")),
        }
        let tensors = self.u64("the number of tensors")?;
        let keys = self.u64("the number of metadata keys")?;
        // The smallest entries there can be: an empty name, counts and one value.
        self.plausible("tensors", tensors, MAX_TENSORS, 24)?;
        self.plausible("metadata keys", keys, MAX_KEYS, 13)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = self.string("a metadata key", MAX_NAME)?;
            let value = self.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata key {key} appears twice"));
            }
        }
        let mut header = Header { metadata, tensors: Vec::new() };
        let alignment = header.uint("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            return Err(format!("general.alignment is {alignment}; a power of two from 8 is expected"));
        }
        let mut names = HashSet::new();
        for _ in 0..tensors {
            let tensor = self.tensor(alignment)?;
            if !names.insert(tensor.name.clone()) {
                return Err(format!("tensor {} appears twice", tensor.name));
            }
            header.tensors.push(tensor);
        }
        let data = self.at.next_multiple_of(alignment);
        self.place(&mut header.tensors, data)?;
        Ok(header)
    }

    /// One entry of the tensor table; its offset is still relative to the data section.
    fn tensor(&mut self, alignment: u64) -> Reason<Tensor> {
        let name = self.string("a tensor name", MAX_NAME)?;
        let dims = self.u32(&format!("the dimensions of {name}"))?;
        if !(1..=4).contains(&dims) {
            return Err(format!("tensor {name} has {dims} dimensions; 1 to 4 are expected"));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(self.u64(&format!("the shape of {name}"))?);
        }
        shape.reverse();
        let kind = self.u32(&format!("the type of {name}"))?;
        let block = BlockType::from_id(kind)
            .ok_or_else(|| format!("tensor {name} has type number {kind}, which this program does not know"))?;
        let offset = self.u64(&format!("the offset of {name}"))?;
        if offset % alignment != 0 {
            return Err(format!("tensor {name} begins at {offset}, which is not aligned to {alignment} bytes"));
        }
        let (values, size) = block.layout();
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
        let cols = shape.last().copied().unwrap_or(0);
        let bytes = match elements {
            Some(n) if cols % values == 0 => (n / values).checked_mul(size),
            Some(_) => {
                return Err(format!(
                    "tensor {name} is {shape:?} in {block} blocks of {values}, which do not fill rows"
                ));
            }
            None => None,
        };
        let bytes = bytes.ok_or_else(|| format!("tensor {name} has the impossible shape {shape:?}"))?;
        Ok(Tensor { name, shape, block, offset, bytes })
    }

    /// Makes offsets absolute and checks that every tensor lies in the file and on no other.
    fn place(&self, tensors: &mut [Tensor], data: u64) -> Reason<()> {
        for t in tensors.iter_mut() {
            let begin = data.checked_add(t.offset);
            match begin.and_then(|b| b.checked_add(t.bytes)) {
                Some(end) if end <= self.length => t.offset += data,
                _ => {
                    return Err(format!(
                        "is truncated: tensor {} needs {} bytes at offset {}, and the file has {} bytes; \
                         download it again",
                        t.name,
                        t.bytes,
                        data.saturating_add(t.offset),
                        self.length
                    ));
                }
            }
        }
        let mut order: Vec<&Tensor> = tensors.iter().collect();
        order.sort_by_key(|t| t.offset);
        for pair in order.windows(2) {
            if let [a, b] = pair
                && a.offset + a.bytes > b.offset
            {
                return Err(format!("tensors {} and {} overlap", a.name, b.name));
            }
        }
        Ok(())
    }

    fn value(&mut self, key: &str) -> Reason<Value> {
        match self.u32(key)? {
            STRING => Ok(Value::String(self.string(key, MAX_STRING)?)),
            ARRAY => self.array(key),
            kind => self.scalar(key, kind),
        }
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Reason<Value> {
        Ok(match kind {
            UINT8 => Value::Uint(u8::from_le_bytes(self.bytes(key)?).into()),
            INT8 => Value::Int(i8::from_le_bytes(self.bytes(key)?).into()),
            UINT16 => Value::Uint(u16::from_le_bytes(self.bytes(key)?).into()),
            INT16 => Value::Int(i16::from_le_bytes(self.bytes(key)?).into()),
            UINT32 => Value::Uint(self.u32(key)?.into()),
            INT32 => Value::Int(i32::from_le_bytes(self.bytes(key)?).into()),
            FLOAT32 => Value::F32(f32::from_le_bytes(self.bytes(key)?)),
            UINT64 => Value::Uint(self.u64(key)?),
            INT64 => Value::Int(i64::from_le_bytes(self.bytes(key)?)),
            FLOAT64 => Value::F64(f64::from_le_bytes(self.bytes(key)?)),
            BOOL => match u8::from_le_bytes(self.bytes(key)?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("metadata key {key} holds the truth value {other}")),
            },
            other => return Err(format!("metadata key {key} has type number {other}, which GGUF does not know")),
        })
    }

    fn array(&mut self, key: &str) -> Reason<Value> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        if kind == ARRAY {
            return Err(format!("metadata key {key} holds an array of arrays, which no model uses"));
        }
        // A text is at least its length.
        self.plausible(&format!("elements in {key}"), count, MAX_ARRAY, type_size(kind).unwrap_or(8))?;
        if kind == STRING {
            return (0..count).map(|_| self.string(key, MAX_STRING)).collect::<Reason<_>>().map(Value::Strings);
        }
        let mut ints = Vec::new();
        let mut floats = Vec::new();
        for _ in 0..count {
            match self.scalar(key, kind)? {
                Value::Uint(n) => {
                    ints.push(i64::try_from(n).map_err(|_| format!("metadata key {key} holds {n}: too large"))?);
                }
                Value::Int(n) => ints.push(n),
                Value::Bool(b) => ints.push(b.into()),
                Value::F32(x) => floats.push(x.into()),
                Value::F64(x) => floats.push(x),
                _ => {}
            }
        }
        Ok(if matches!(kind, FLOAT32 | FLOAT64) { Value::Floats(floats) } else { Value::Ints(ints) })
    }

    fn string(&mut self, what: &str, max: u64) -> Reason<String> {
        let n = self.u64(what)?;
        if n > max {
            return Err(format!("claims a text of {n} bytes for {what}; at most {max} are believed"));
        }
        self.plausible(&format!("bytes of text for {what}"), n, max, 1)?;
        let mut bytes = vec![0; n as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| format!("{what}: the text is not UTF-8"))
    }

    /// Refuses a count that no sound file has, before anything is allocated for it.
    fn plausible(&self, what: &str, count: u64, max: u64, bytes_each: u64) -> Reason<()> {
        if count > max {
            return Err(format!("claims {count} {what}; at most {max} are believed"));
        }
        let left = self.length.saturating_sub(self.at);
        match count.checked_mul(bytes_each) {
            Some(need) if need <= left => Ok(()),
            _ => Err(format!("is truncated: it claims {count} {what} and ends {left} bytes later; download it again")),
        }
    }

    fn u32(&mut self, what: &str) -> Reason<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Reason<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Reason<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Reason<()> {
        self.source.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                format!("is truncated: it ends in {what} (file length {} bytes); download it again", self.length)
            }
            _ => format!("cannot be read ({e})"),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;

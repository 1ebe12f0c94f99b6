//! Writes a GGUF file as a checkpoint directory in MLX layout.
//!
//! Two passes over the tensors: the first checks every number (finite; scales that survive f16) and so
//! fixes the layout of `model.safetensors`, the second converts. One tensor is in memory at a time.
//! The directory is made by the caller and complete only when [`import`] returns `Ok`.

use super::blocks::{self, Encoding, GROUP};
use super::config::{ConfigFacts, Dims};
use super::tensors::{self, Planned};
use super::{Error, Header, Reason, Tensor, expand, tokenizer};
use crate::model::registry::FetchProgress;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Choices of an import.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// Expand block types that MLX has no groups for to f16 (rounded) instead of refusing them.
    pub dequantize: bool,
}

/// Imports the GGUF file `source` into the existing, empty directory `dir`. Returns notes for the user.
///
/// # Errors
/// Where the file is damaged or holds something that cannot be imported without loss, or writing fails.
pub fn import(
    source: &Path,
    dir: &Path,
    options: ImportOptions,
    progress: &mut dyn FetchProgress,
) -> Result<Vec<String>, Error> {
    let (header, mut file) = Header::open(source)?;
    let fail = |what: String| Error { path: source.to_owned(), what };
    let freqs = rope_freqs(&header, &mut file).map_err(fail)?;
    let dims = Dims::read(&header, freqs.as_deref()).map_err(fail)?;
    let plan = tensors::plan(&header, &dims).map_err(fail)?;
    let words = tokenizer::rebuild(&header, dims.context).map_err(fail)?;
    if words.tokens > plan.vocab_size {
        return Err(fail(format!("has {} tokens and embeds only {}", words.tokens, plan.vocab_size)));
    }
    refuse_types(&plan.tensors, options).map_err(fail)?;

    let total: u64 = plan.tensors.iter().map(|t| t.source.bytes).sum();
    progress.begin("importing weights", Some(2 * total));
    let mut stored = Vec::new();
    for t in &plan.tensors {
        stored.push(check(t, &mut file).map_err(fail)?);
        progress.advance(t.source.bytes);
    }
    let model = dir.join("model.safetensors");
    write_tensors(&stored, &mut file, &model, progress).map_err(fail)?;
    progress.end();

    let facts = ConfigFacts {
        vocab_size: plan.vocab_size,
        tied: plan.tied,
        attention_bias: plan.attention_bias,
        mlp_bias: plan.mlp_bias,
        dtype: dtype_name(&stored),
        quantization: quantization(&stored),
        bos: words.special.bos,
        eos: words.special.eos,
        pad: words.special.pad,
    };
    let config = tokenizer::pretty(&dims.config(&facts)).map_err(fail)?;
    for (name, bytes) in words.files.into_iter().chain([("config.json", config)]) {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error { path, what: format!("cannot be written ({e})") })?;
    }
    let expanded: Vec<&Stored> = stored.iter().filter(|s| s.form == Form::Expanded).collect();
    let types: std::collections::BTreeSet<String> =
        expanded.iter().map(|s| s.planned.source.block.to_string()).collect();
    Ok(if expanded.is_empty() {
        Vec::new()
    } else {
        let types: Vec<String> = types.into_iter().collect();
        vec![format!(
            "{} tensors of type {} were expanded to float16, which rounds them",
            expanded.len(),
            types.join(", ")
        )]
    })
}

/// The factors of Llama 3's rope scaling, if the file has them.
fn rope_freqs(h: &Header, file: &mut File) -> Reason<Option<Vec<f32>>> {
    let Some(t) = h.tensors.iter().find(|t| t.name == tensors::ROPE_FREQS) else { return Ok(None) };
    if t.block.encoding() != Encoding::Plain(Dtype::F32) || t.shape.len() != 1 {
        return Err(format!("tensor {} is {} {:?}; a vector of F32 is expected", t.name, t.block, t.shape));
    }
    let data = read(t, file)?;
    Ok(Some(data.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()))
}

/// Refuses block types that cannot be imported, all of them in one message.
fn refuse_types(tensors: &[Planned], options: ImportOptions) -> Reason<()> {
    let mut refused: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for t in tensors {
        let expandable = t.source.block.encoding() == Encoding::Expandable;
        let matrix = t.source.shape.len() == 2;
        if t.source.block.encoding() == Encoding::Unsupported || (expandable && !(options.dequantize && matrix)) {
            refused.entry(t.source.block.to_string()).or_insert((0, expandable)).0 += 1;
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let remedy = if refused.values().all(|(_, expandable)| *expandable) {
        "import with --dequantize, which expands them to float16 (larger, rounded)"
    } else {
        "take the same model in one of the lossless types, or the original safetensors files"
    };
    let list: Vec<String> = refused.iter().map(|(name, (n, _))| format!("{n} tensors of type {name}")).collect();
    Err(format!(
        "has {}, which MLX cannot hold without loss (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, F16, BF16 and F32 it can); {remedy}",
        list.join(" and ")
    ))
}

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As it is.
    Plain(Dtype),
    /// Codes, scales and biases.
    Affine { bits: u32, scales: Dtype },
    /// f16 values of a block type.
    Expanded,
}

/// A checked tensor.
struct Stored<'a> {
    planned: &'a Planned<'a>,
    form: Form,
}

/// First pass: reads a tensor, refuses numbers that are not finite, and picks the type of scales.
fn check<'a>(planned: &'a Planned<'a>, file: &mut File) -> Reason<Stored<'a>> {
    let t = planned.source;
    let data = read(t, file)?;
    let finite =
        |ok: bool| if ok { Ok(()) } else { Err(format!("tensor {} holds a number that is not finite", t.name)) };
    let form = match t.block.encoding() {
        Encoding::Plain(dtype) => {
            let two = |f: fn([u8; 2]) -> bool| data.chunks_exact(2).all(|c| f([c[0], c[1]]));
            finite(match dtype {
                Dtype::F16 => two(|b| f16::from_le_bytes(b).is_finite()),
                Dtype::BF16 => two(|b| bf16::from_le_bytes(b).is_finite()),
                _ => data.chunks_exact(4).all(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]).is_finite()),
            })?;
            Form::Plain(dtype)
        }
        Encoding::Affine { bits } => {
            let (mut ok, mut half) = (true, true);
            blocks::groups(t.block, &data, &mut |g| {
                ok &= g.scale.is_finite() && g.bias.is_finite();
                half &= blocks::fits_f16(g.scale) && blocks::fits_f16(g.bias);
            });
            finite(ok)?;
            Form::Affine { bits, scales: if half { Dtype::F16 } else { Dtype::F32 } }
        }
        Encoding::Expandable => {
            let values = expand::expand(t.block, &data);
            finite(values.iter().all(|v| f16::from_f32(*v).is_finite()))?;
            Form::Expanded
        }
        Encoding::Unsupported => return Err(format!("tensor {} has the unsupported type {}", t.name, t.block)),
    };
    Ok(Stored { planned, form })
}

/// The whole data of a tensor. Its length was checked against the file when the header was read.
fn read(t: &Tensor, file: &mut File) -> Reason<Vec<u8>> {
    let at = |e: std::io::Error| format!("tensor {} cannot be read ({e})", t.name);
    let length = usize::try_from(t.bytes).map_err(|_| format!("tensor {} does not fit in memory", t.name))?;
    let mut data = vec![0; length];
    file.seek(SeekFrom::Start(t.offset)).map_err(at)?;
    file.read_exact(&mut data).map_err(at)?;
    Ok(data)
}

/// Names, types and shapes of what one tensor is written as, and their data.
fn outputs(s: &Stored) -> Vec<(String, Dtype, Vec<usize>)> {
    let shape: Vec<usize> = s.planned.source.shape.iter().map(|d| *d as usize).collect();
    let name = &s.planned.name;
    match s.form {
        Form::Plain(dtype) => vec![(name.clone(), dtype, shape)],
        Form::Expanded => vec![(name.clone(), Dtype::F16, shape)],
        Form::Affine { bits, scales } => {
            let [rows, cols] = [s.planned.source.rows() as usize, s.planned.source.cols() as usize];
            let groups = vec![rows, cols / GROUP];
            let module = name.strip_suffix(".weight").unwrap_or(name);
            vec![
                (name.clone(), Dtype::U32, vec![rows, cols / GROUP * bits as usize]),
                (format!("{module}.scales"), scales, groups.clone()),
                (format!("{module}.biases"), scales, groups),
            ]
        }
    }
}

/// The data of [`outputs`], in the same order.
fn convert(s: &Stored, file: &mut File) -> Reason<Vec<Vec<u8>>> {
    let t = s.planned.source;
    let mut data = read(t, file)?;
    if let Some(heads) = s.planned.heads {
        // A bias has one value a row: its shape is [rows].
        let rows = t.shape.first().copied().unwrap_or(1);
        data = tensors::deinterleave(&data, rows as usize, heads as usize);
    }
    Ok(match s.form {
        Form::Plain(_) => vec![data],
        Form::Expanded => {
            let values = expand::expand(t.block, &data);
            vec![values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()]
        }
        Form::Affine { bits, scales } => {
            let groups = data.len() / t.block.layout().1 as usize * (t.block.layout().0 as usize / GROUP);
            let width = if scales == Dtype::F16 { 2 } else { 4 };
            let mut codes = Vec::with_capacity(groups * bits as usize * 4);
            let mut scale = Vec::with_capacity(groups * width);
            let mut bias = Vec::with_capacity(groups * width);
            let put = |out: &mut Vec<u8>, x: f32| match scales {
                Dtype::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
                _ => out.extend(x.to_le_bytes()),
            };
            blocks::groups(t.block, &data, &mut |g| {
                blocks::pack(&g.codes, bits, &mut codes);
                put(&mut scale, g.scale);
                put(&mut bias, g.bias);
            });
            vec![codes, scale, bias]
        }
    })
}

/// Second pass: writes `model.safetensors`, its tensors ordered by alignment and name.
fn write_tensors(stored: &[Stored], file: &mut File, path: &Path, progress: &mut dyn FetchProgress) -> Reason<()> {
    let mut order: Vec<(String, Dtype, Vec<usize>)> = stored.iter().flat_map(outputs).collect();
    order.sort_by(|a, b| b.1.bitsize().cmp(&a.1.bitsize()).then_with(|| a.0.cmp(&b.0)));
    let mut offsets = HashMap::new();
    let mut infos = Vec::new();
    let mut end = 0;
    for (name, dtype, shape) in order {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        offsets.insert(name.clone(), (begin, end));
        infos.push((name, TensorInfo { dtype, shape, data_offsets: (begin, end) }));
    }
    let format = HashMap::from([("format".to_owned(), "mlx".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|e| format!("cannot be laid out ({e})"))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |e: std::io::Error| {
        let hint = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "; free some space and import again",
            _ => "",
        };
        format!("cannot be imported: writing {} failed ({e}){hint}", path.display())
    };
    let mut out = File::create(path).map_err(failed)?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for s in stored {
        for ((name, ..), bytes) in outputs(s).iter().zip(convert(s, file)?) {
            let Some((begin, end)) = offsets.get(name) else { return Err(format!("lost track of tensor {name}")) };
            if end - begin != bytes.len() {
                return Err(format!("tensor {name} became {} bytes instead of {}", bytes.len(), end - begin));
            }
            out.seek(SeekFrom::Start((8 + header.len() + begin) as u64)).map_err(failed)?;
            out.write_all(&bytes).map_err(failed)?;
        }
        progress.advance(s.planned.source.bytes);
    }
    Ok(())
}

/// The `quantization` entry of a config: the most frequent width, the others module by module.
fn quantization(stored: &[Stored]) -> Option<Map<String, serde_json::Value>> {
    let mut widths = BTreeMap::new();
    let mut modules = BTreeMap::new();
    for s in stored {
        if let Form::Affine { bits, .. } = s.form {
            *widths.entry(bits).or_insert(0) += 1;
            let name = &s.planned.name;
            modules.insert(name.strip_suffix(".weight").unwrap_or(name), bits);
        }
    }
    let usual = *widths.iter().max_by_key(|(_, n)| **n)?.0;
    let mut q = Map::new();
    q.insert("group_size".into(), json!(GROUP));
    q.insert("bits".into(), json!(usual));
    q.insert("mode".into(), json!("affine"));
    for (module, bits) in modules.into_iter().filter(|(_, b)| *b != usual) {
        q.insert(module.into(), json!({ "group_size": GROUP, "bits": bits }));
    }
    Some(q)
}

/// The type of most unquantised numbers and scales, as a config names it.
fn dtype_name(stored: &[Stored]) -> &'static str {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for s in stored.iter().filter(|s| s.planned.source.shape.len() > 1) {
        let name = match s.form {
            Form::Plain(Dtype::BF16) => "bfloat16",
            Form::Plain(Dtype::F32) | Form::Affine { scales: Dtype::F32, .. } => "float32",
            _ => "float16",
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map_or("float16", |(name, _)| name)
}

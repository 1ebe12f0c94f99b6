//! From finished parts to the directory: complete or absent.
//!
//! Tensors that did not change are copied from the base byte for byte, and so are slices that stay dense. Of the
//! components of a slice as many are taken as are to be stored. With `self_contained` the base's own tensors of
//! factored slices are kept beside, with the headers of its files, so that those can be written again bit for bit.

use super::error::{Error, Result};
use super::fixed;
use super::manifest::{Manifest, PARKED, Part, SCHEMA, SPECTRA, SliceRecord};
use super::residual;
use super::settings::Settings;
use super::work::{Decided, Work, sha256};
use crate::atomic::{FileError, Staged};
use crate::mlx::quant::{Mode, Scheme};
use crate::model::awake::{CONFIG, HEADER_OF, INDEX};
use crate::model::checkpoint::Checkpoint;
use crate::model::safetensors::read_header;
use crate::model::tensor_file::{self, Source, Tensor, by_place, copied};
use crate::model::{Level, ladder::MANIFEST};
use crate::plugin::contract::Slice;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// What goes into the directory.
pub struct Contents<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The plan.
    pub decided: &'a Decided,
    /// The slices, in its order.
    pub slices: &'a [Slice],
    /// Finished parts.
    pub work: &'a Work,
}

/// Writes the directory; `check` sees it before it is moved to its place, and may add to the manifest.
///
/// # Errors
/// When a file cannot be read or written, or `check` says no; nothing is at `out` then.
pub fn assemble(out: &Path, c: &Contents, check: impl FnOnce(&Path, &mut Manifest) -> Result<()>) -> Result<Manifest> {
    let base = &c.settings.base.dir;
    let checkpoint = Checkpoint::open(base)?;
    let staged = Staged::new(out)?;
    let to = staged.path();
    let levels: BTreeMap<&str, Level> =
        c.slices.iter().map(|s| s.name.as_str()).zip(c.decided.levels.iter().copied()).collect();
    let (mut tensors, mut parked) = (Vec::new(), Vec::new());
    for file in checkpoint.files() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        parked.push(header(file, &format!("{HEADER_OF}{name}"))?);
        for (name, info) in by_place(read_header(file)?) {
            let (module, part) = name.rsplit_once('.').unwrap_or(("", &name));
            let is_weight = ["weight", "scales", "biases"].contains(&part);
            let replaced = matches!(levels.get(module), Some(Level::Rank(_))) && is_weight;
            let tensor = copied(file, name, &info)?;
            if replaced { parked.push(tensor) } else { tensors.push(tensor) }
        }
    }
    let mut energies = Vec::new();
    for (i, s) in c.slices.iter().enumerate() {
        let stored = c.decided.stored.get(i).copied().unwrap_or(0);
        let part = c.work.part(i);
        if part.is_file() {
            for (name, info) in by_place(read_header(&part)?) {
                let tensor = copied(&part, name, &info)?;
                if let Some(values) = tensor.name.strip_suffix(".energy") {
                    energies.push(first_energies(values, &part, &tensor, stored)?);
                } else if let Some(tensor) = first_rows(tensor, stored) {
                    tensors.push(tensor);
                }
            }
        } else {
            energies.push(Tensor::f32(s.name.clone(), vec![1], &[0.0]));
        }
    }
    let mut files = BTreeMap::new();
    let mut write = |name: &str, tensors: &[Tensor]| -> Result<()> {
        let path = to.join(name);
        tensor_file::write(&path, &[("format", "mlx".into())], tensors)?;
        let bytes = path.metadata().map_err(FileError::at("reading", &path))?.len();
        files.insert(name.to_owned(), Part { bytes, sha256: sha256(&path)? });
        Ok(())
    };
    write("model.safetensors", &tensors)?;
    write(SPECTRA, &energies)?;
    if c.settings.self_contained {
        let config = base.join("config.json");
        parked.push(whole(&config, CONFIG)?);
        let index = base.join("model.safetensors.index.json");
        if index.is_file() {
            parked.push(whole(&index, INDEX)?);
        }
        write(PARKED, &parked)?;
    }
    tensor_file::copy_texts(base, to)?;
    let coarse = c.settings.coarse.map(|q| Scheme { group_size: q.group_size, bits: q.bits, mode: Mode::Affine });
    let schemes = coarse.iter().flat_map(|q| c.slices.iter().map(|s| (s.name.clone(), Some(*q)))).collect();
    fixed::config(base, to, &schemes)?;
    let mut manifest = manifest(c, files);
    manifest.write(to)?;
    check(to, &mut manifest)?;
    manifest.write(to)?;
    // `write_file` leaves nothing else behind; what is here is what was meant to be.
    debug_assert!(to.join(MANIFEST).is_file());
    staged.commit()?;
    Ok(manifest)
}

fn manifest(c: &Contents, files: BTreeMap<String, Part>) -> Manifest {
    let record = |((s, level), stored): ((&Slice, &Level), &u32)| SliceRecord {
        name: s.name.clone(),
        rows: s.rows,
        cols: s.cols,
        stored: *stored,
        planned: *level,
        coarse: c.settings.coarse.map_or(0, |q| residual::cost(q, s.rows, s.cols)),
    };
    let stored: Vec<SliceRecord> = c.slices.iter().zip(&c.decided.levels).zip(&c.decided.stored).map(record).collect();
    let mut m = Manifest {
        schema: SCHEMA,
        program: env!("CARGO_PKG_VERSION").into(),
        settings: c.settings.clone(),
        order: c.decided.metric,
        share: 0.0,
        predicted: c.decided.predicted,
        stored,
        files,
        measured: None,
        notes: Vec::new(),
        awake_budget: 0.0,
        awake: Default::default(),
        runs_base: false,
    };
    m.share = m.awake_parameters(&c.decided.levels) as f64 / m.parameters().max(1) as f64;
    m.awake_budget = m.share;
    m.awake = m.named(&c.decided.levels);
    m
}

/// The first rows of a tensor of components; other tensors whole. `None` where no row is wanted.
fn first_rows(tensor: Tensor, stored: u32) -> Option<Tensor> {
    let of_components = tensor.name.contains(".ladder.") || tensor.name.contains(".repair.");
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let wanted = (stored as usize).min(rows);
    if !of_components || wanted == rows {
        return Some(tensor);
    }
    let Source::File(path, begin, len) = &tensor.source else { return Some(tensor) };
    let source = Source::File(path.clone(), *begin, len / rows as u64 * wanted as u64);
    let mut shape = tensor.shape.clone();
    *shape.first_mut()? = wanted;
    (wanted > 0).then_some(Tensor { shape, source, ..tensor })
}

/// The energies of the first components, and the sum of the others.
fn first_energies(slice: &str, part: &Path, tensor: &Tensor, stored: u32) -> Result<Tensor> {
    let Source::File(path, begin, len) = &tensor.source else {
        return Err(Error::file(part, "has energies that are not in a file"));
    };
    let bytes = read(path, *begin, *len)?;
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let stored = (stored as usize).min(values.len());
    let (first, rest) = values.split_at(stored);
    let beyond: f64 = rest.iter().map(|e| f64::from(*e)).sum();
    let mut kept = first.to_vec();
    kept.push(beyond as f32);
    Ok(Tensor::f32(slice, vec![kept.len()], &kept))
}

/// The header of a file with the eight bytes before it.
fn header(file: &Path, name: &str) -> Result<Tensor> {
    let length = read(file, 0, 8)?;
    let length: [u8; 8] = length.try_into().map_err(|_| Error::file(file, "is no safetensors file"))?;
    let bytes = read(file, 0, 8 + u64::from_le_bytes(length))?;
    Ok(Tensor { name: name.into(), dtype: "U8", shape: vec![bytes.len()], source: Source::Bytes(bytes) })
}

fn whole(file: &Path, name: &str) -> Result<Tensor> {
    let length = file.metadata().map_err(FileError::at("reading", file))?.len();
    let bytes = read(file, 0, length)?;
    Ok(Tensor { name: name.into(), dtype: "U8", shape: vec![bytes.len()], source: Source::Bytes(bytes) })
}

fn read(file: &Path, begin: u64, len: u64) -> Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut bytes = Vec::new();
    let from = || -> std::io::Result<()> {
        let mut f = crate::atomic::open_regular(file)?;
        f.seek(SeekFrom::Start(begin))?;
        f.take(len).read_to_end(&mut bytes)?;
        Ok(())
    };
    let mut from = from;
    from().map_err(FileError::at("reading", file))?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(Error::file(file, "is shorter than its header says; the file is damaged")),
    }
}

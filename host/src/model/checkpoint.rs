//! A checkpoint directory: which files hold which tensors. Read-only; nothing here writes.
//!
//! Headers are parsed and checked by [`super::safetensors`] first; the tensors themselves are loaded
//! lazily by MLX, which reads from the files when something is evaluated.

use super::error::{Error, Result};
use super::fields::{Fields, read_json_if_there};
use super::safetensors::{TensorInfo, read_header};
use crate::mlx::Array;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The tensors of a checkpoint and the files they lie in.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

impl Checkpoint {
    /// Finds the weight files of `dir` and reads their headers: the shards that
    /// `model.safetensors.index.json` names, or else every `model*.safetensors`,
    /// or else every `*.safetensors`.
    ///
    /// # Errors
    /// When there are none, one is missing or damaged, a tensor lies in two files, or not in the file
    /// that the index says.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let index_path = dir.join("model.safetensors.index.json");
        let index = match read_json_if_there(&index_path)? {
            Some(v) => Some(read_index(&index_path, &v)?),
            None => None,
        };
        let files = match &index {
            Some(map) => {
                let names: BTreeSet<&String> = map.values().collect();
                names.into_iter().map(|n| dir.join(n)).collect()
            }
            None => weight_files(dir)?,
        };
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            let header = read_header(file).map_err(|e| match e {
                Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::file(
                    &index_path,
                    format!("names the shard {}, which is missing: fetch the model again", file.display()),
                ),
                e => e,
            })?;
            for (name, info) in header {
                if let Some((other, _)) = tensors.insert(name.clone(), (i, info)) {
                    return Err(Error::tensor(
                        file,
                        name,
                        format!("lies in {} too", files.get(other).unwrap_or(file).display()),
                    ));
                }
            }
        }
        let checkpoint = Checkpoint { dir: dir.to_owned(), files, tensors };
        if let Some(map) = index {
            checkpoint.check_index(&index_path, &map)?;
        }
        Ok(checkpoint)
    }

    /// Those tensors of `files` that are named, as if they were all of a checkpoint.
    ///
    /// # Errors
    /// When a file is damaged or a tensor is in none of them.
    pub fn among(dir: &Path, files: Vec<PathBuf>, names: &BTreeSet<String>) -> Result<Checkpoint> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            tensors.extend(read_header(file)?.into_iter().filter(|(n, _)| names.contains(n)).map(|(n, t)| (n, (i, t))));
        }
        match names.iter().find(|n| !tensors.contains_key(*n)) {
            Some(n) => Err(Error::tensor(dir, n, "is in none of the files: the directory is incomplete")),
            None => Ok(Checkpoint { dir: dir.to_owned(), files, tensors }),
        }
    }

    fn check_index(&self, path: &Path, map: &BTreeMap<String, String>) -> Result<()> {
        for (name, shard) in map {
            match self.tensors.get(name) {
                None => {
                    return Err(Error::tensor(
                        path,
                        name,
                        format!("should lie in {shard} but is not there: the checkpoint is incomplete"),
                    ));
                }
                Some((i, _)) if self.files.get(*i) != Some(&self.dir.join(shard)) => {
                    return Err(Error::tensor(
                        path,
                        name,
                        format!("should lie in {shard} but lies in {}", self.file_of(name).display()),
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What is known of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(_, t)| t)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file a tensor lies in; the directory for a tensor that is not there.
    pub fn file_of(&self, name: &str) -> &Path {
        self.tensors.get(name).and_then(|(i, _)| self.files.get(*i)).map_or(&self.dir, PathBuf::as_path)
    }

    /// Every tensor as a lazy array.
    ///
    /// # Errors
    /// When MLX cannot open a file.
    pub fn arrays(&self) -> Result<HashMap<String, Array>> {
        let mut all = HashMap::new();
        for file in &self.files {
            let part =
                Array::load_safetensors(file).map_err(|e| Error::file(file, format!("MLX cannot load it: {e}")))?;
            all.extend(part);
        }
        Ok(all)
    }
}

/// `weight_map` of the index: tensor name to file name.
fn read_index(path: &Path, value: &serde_json::Value) -> Result<BTreeMap<String, String>> {
    let fields = Fields::new(path, value)?;
    let map = fields
        .object("weight_map")?
        .ok_or_else(|| fields.error("weight_map", "missing; expected tensor names and files"))?;
    let mut out = BTreeMap::new();
    for (name, file) in map.iter() {
        let plain =
            file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f) && f.ends_with(".safetensors"));
        let file = plain.ok_or_else(|| {
            map.error(
                name,
                format!("names the file {file}; expected a plain name of a .safetensors file in the same directory"),
            )
        })?;
        out.insert(name.clone(), file.to_owned());
    }
    match out.is_empty() {
        true => Err(fields.error("weight_map", "is empty")),
        false => Ok(out),
    }
}

/// `model*.safetensors`, or when there is none every `*.safetensors`.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let name = entry.map_err(Error::io(dir))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") && !name.starts_with('.') {
            names.push(name);
        }
    }
    if names.iter().any(|n| n.starts_with("model")) {
        names.retain(|n| n.starts_with("model"));
    }
    names.sort();
    match names.is_empty() {
        true => Err(Error::file(
            dir,
            "no *.safetensors here; a base is a directory in MLX layout (a GGUF file or another format must be imported first: `plastic-host model import`)",
        )),
        false => Ok(names.into_iter().map(|n| dir.join(n)).collect()),
    }
}

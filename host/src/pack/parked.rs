//! Packs that are not in use but at hand: evaluated and detached, in float16.
//!
//! A parked pack takes half the memory of an attached one. Waking widens it to float32 and scales it, which gives
//! the same numbers as [`super::attach::prepare`], then hands it to the model; the base is not read. What does not fit
//! the memory budget is dropped, the one that slept longest first, and read again from its file when it is wanted.

use super::attach::{self, Attachment};
use super::error::{Error, Result};
use super::format::{Matrix, Pack};
use super::store::Store;
use crate::mlx::{self, Array};
use crate::model::{Added, Factors, Model};
use half::slice::HalfFloatSliceExt;
use std::path::{Path, PathBuf};

/// A pack in float16.
struct Parked {
    name: String,
    slices: Vec<Asleep>,
    bytes: u64,
}

/// One slice of it.
struct Asleep {
    position: usize,
    a: Matrix,
    b: Matrix,
    scale: f32,
    /// DoRA: gain of each output, which takes the base's weight to compute.
    gain: Option<Array>,
}

/// How a pack was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// It was parked.
    Memory,
    /// It had to be read.
    Disk,
}

/// Parked packs, in order of their last use.
pub struct Parking {
    store: Store,
    base: PathBuf,
    /// Most bytes that may be parked.
    budget: Option<u64>,
    parked: Vec<Parked>,
    evictions: usize,
}

impl Parking {
    /// An empty one for the base in a directory.
    pub fn new(store: Store, base: &Path, budget: Option<u64>) -> Parking {
        Parking { store, base: base.to_owned(), budget, parked: Vec::new(), evictions: 0 }
    }

    /// Bytes that are parked.
    pub fn bytes(&self) -> u64 {
        self.parked.iter().map(|p| p.bytes).sum()
    }

    /// Packs that were dropped to keep to the budget.
    pub fn evictions(&self) -> usize {
        self.evictions
    }

    /// Names of the parked packs, the one used last at the end.
    pub fn names(&self) -> Vec<&str> {
        self.parked.iter().map(|p| p.name.as_str()).collect()
    }

    /// Attaches a pack in the place of what is attached. Where it fails, the model is as it was.
    ///
    /// # Errors
    /// When the pack must be read and cannot be, or does not fit.
    pub fn wake(&mut self, model: &mut Model, name: &str) -> Result<From> {
        let from = match self.parked.iter().position(|p| p.name == name) {
            Some(at) => {
                let used = self.parked.remove(at);
                self.parked.push(used);
                From::Memory
            }
            None => {
                let parked = self.read(model, name)?;
                self.parked.push(parked);
                From::Disk
            }
        };
        let attachment = match self.parked.last() {
            Some(parked) => parked.widened()?,
            None => return Err(Error::Other(format!("pack {name} is not parked"))),
        };
        attach::attach(model, &attachment);
        self.make_room();
        Ok(from)
    }

    /// Keeps to the budget: the pack used last goes at once where it does not fit alone, or else the one that was not
    /// used longest.
    fn make_room(&mut self) {
        let Some(budget) = self.budget else { return };
        if self.parked.pop_if(|last| last.bytes > budget).is_some() {
            self.evictions += 1;
        }
        while self.bytes() > budget && !self.parked.is_empty() {
            self.parked.remove(0);
            self.evictions += 1;
        }
    }

    fn read(&self, model: &Model, name: &str) -> Result<Parked> {
        let pack = self.store.read(name)?;
        attach::check_base(&pack, &self.base)?;
        // Checks the geometry, and computes what DoRA needs.
        let whole = attach::prepare(model, &[(&pack, 1.0)])?;
        let Pack { adapters, .. } = pack;
        let mut slices = Vec::with_capacity(adapters.len());
        for (key, adapter) in adapters {
            let scale = adapter.scale();
            let slice = super::key::to_slice(&key).unwrap_or_default();
            let position = model.slices().iter().position(|s| s.name == slice);
            let position = position.ok_or_else(|| Error::fit(name, format!("{key} is no slice of this model")))?;
            let gain = whole.added(position).and_then(|a| a.gain.clone());
            slices.push(Asleep { position, a: adapter.a, b: adapter.b, scale, gain });
        }
        let bytes = slices.iter().map(Asleep::nbytes).sum();
        Ok(Parked { name: name.to_owned(), slices, bytes })
    }
}

impl Asleep {
    fn nbytes(&self) -> u64 {
        2 * (self.a.data.len() + self.b.data.len()) as u64 + self.gain.as_ref().map_or(0, |g| g.nbytes() as u64)
    }
}

impl Parked {
    fn widened(&self) -> Result<Attachment> {
        let longest = self.slices.iter().map(|s| s.a.data.len().max(s.b.data.len())).max().unwrap_or(0);
        let mut wide = vec![0f32; longest];
        let mut added = Vec::with_capacity(self.slices.len());
        for s in &self.slices {
            let mut array = |m: &Matrix, scale: f32| {
                let wide = &mut wide[..m.data.len()];
                m.data.convert_to_f32_slice(wide);
                wide.iter_mut().for_each(|x| *x *= scale);
                Array::from_slice(wide, &[m.rows as i32, m.cols as i32])
            };
            let factors = Factors { a: array(&s.a, s.scale), b: array(&s.b, 1.0) };
            added.push((s.position, Added { factors, gain: s.gain.clone() }));
        }
        mlx::eval(added.iter().flat_map(|(_, a)| [&a.factors.a, &a.factors.b]))?;
        Ok(added.into_iter().collect())
    }
}

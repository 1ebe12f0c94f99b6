//! The parked store: every component of a factored slice, awake or asleep.
//!
//! A bank is made once, when a slice is first factored, and never changes. Components awake at that
//! moment (the core) are kept exactly, in float32; the others are parked in 8 bits a value unless
//! parking is exact. So the value of a component never depends on how often it slept: the state of
//! a model is only the list of awake components, and nothing drifts.
//!
//! Before its step is committed a bank lives in memory; afterwards in a safetensors file of the run,
//! from which only what wakes is read.

use super::factor::{Components, Metric};
use super::state::Awake;
use crate::mlx::{self, Array, Context, Dtype};
use crate::model::Factors;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How sleeping components are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Parking {
    /// 8 bits a value, one range a component; about 1 % error in a woken component.
    #[default]
    #[serde(rename = "8bit")]
    #[value(name = "8bit")]
    EightBit,
    /// float32, as exact as when it was awake.
    #[serde(rename = "exact")]
    Exact,
}

/// Where the tensors of a bank are.
#[derive(Clone, Debug)]
enum Store {
    Memory(HashMap<String, Array>),
    File { path: PathBuf, prefix: String },
}

/// Every component of one slice.
#[derive(Clone, Debug)]
pub struct Bank {
    /// What ordered the components.
    pub metric: Metric,
    /// Components kept exactly, ascending; the rest is parked.
    core: Vec<u32>,
    rank: u32,
    store: Store,
}

/// What the journal keeps of a bank: enough to find it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BankRecord {
    /// Slice id in the run.
    pub slice: u32,
    /// What ordered the components.
    pub metric: Metric,
    /// Components kept exactly.
    pub core: Awake,
    /// Number of components.
    pub rank: u32,
}

/// A bank cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BankError {
    /// MLX failed.
    #[error(transparent)]
    Mlx(#[from] mlx::MlxError),
    /// A tensor is missing from the file or has another shape.
    #[error(
        "{path}: tensor {tensor} is missing or damaged; the run cannot be used from this step, undo to an earlier one"
    )]
    Damaged {
        /// The bank file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, BankError>;

/// Rows [n, width] in 8 bits, one range a row: value = q · scale + low.
fn park(rows: &Array) -> mlx::Result<[Array; 3]> {
    let what = "parking components";
    let low = rows.min_axis(-1, true).context(what)?;
    let high = rows.max_axis(-1, true).context(what)?;
    let scale = high.subtract(&low).and_then(|d| d.divide(Array::from_f32(255.0))).context(what)?;
    let scale = mlx_rs::ops::maximum(&scale, Array::from_f32(1e-12)).context(what)?;
    let q = rows.subtract(&low).and_then(|d| d.divide(&scale)?.round(0)?.as_dtype(Dtype::Uint8)).context(what)?;
    mlx::eval([&q, &scale, &low])?;
    Ok([q, scale, low])
}

fn unpark(q: &Array, scale: &Array, low: &Array) -> mlx::Result<Array> {
    q.as_dtype(Dtype::Float32).and_then(|q| q.multiply(scale)?.add(low)).context("waking parked components")
}

fn take_rows(a: &Array, rows: &[u32]) -> mlx::Result<Array> {
    let index: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
    a.take_axis(Array::from_slice(&index, &[index.len() as i32]), 0).context("choosing components")
}

impl Bank {
    /// Makes the bank of a slice whose components `awake` are awake first.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn new(components: &Components, metric: Metric, awake: &Awake, parking: Parking) -> Result<Bank> {
        let rank = components.a.dim(0) as u32;
        let core = match parking {
            Parking::EightBit => awake.components(rank),
            Parking::Exact => (0..rank).collect(),
        };
        let rest = complement(&core, rank);
        let mut tensors = HashMap::new();
        for (side, all) in [("a", &components.a), ("b", &components.b)] {
            if !core.is_empty() {
                let exact = take_rows(all, &core)?;
                mlx::eval([&exact])?;
                tensors.insert(format!("{side}.core"), exact);
            }
            if !rest.is_empty() {
                let [q, scale, low] = park(&take_rows(all, &rest)?)?;
                tensors.insert(format!("{side}.q"), q);
                tensors.insert(format!("{side}.scale"), scale);
                tensors.insert(format!("{side}.low"), low);
            }
        }
        Ok(Bank { metric, core, rank, store: Store::Memory(tensors) })
    }

    /// A bank that lies in a file.
    pub fn in_file(record: &BankRecord, path: &Path, slice_name: &str) -> Bank {
        Bank {
            metric: record.metric,
            core: record.core.components(record.rank),
            rank: record.rank,
            store: Store::File { path: path.to_owned(), prefix: slice_name.to_owned() },
        }
    }

    /// What the journal keeps.
    pub fn record(&self, slice: u32) -> BankRecord {
        BankRecord { slice, metric: self.metric, core: Awake::from_components(self.core.clone()), rank: self.rank }
    }

    /// The tensors to write, named `<slice>.<tensor>`; empty once the bank is in a file.
    pub fn tensors(&self, slice_name: &str) -> Vec<(String, Array)> {
        match &self.store {
            Store::Memory(t) => t.iter().map(|(k, v)| (format!("{slice_name}.{k}"), v.clone())).collect(),
            Store::File { .. } => Vec::new(),
        }
    }

    /// Bytes of the components that are asleep in `awake`, where they lie now.
    pub fn parked_bytes(&self, awake: &Awake, rows: u32, cols: u32) -> u64 {
        if awake.is_dense() {
            return 0;
        }
        let awake_list = awake.components(self.rank);
        let values = u64::from(rows) + u64::from(cols);
        (0..self.rank)
            .filter(|c| awake_list.binary_search(c).is_err())
            .map(|c| if self.core.binary_search(&c).is_ok() { 4 * values } else { values + 16 })
            .sum()
    }

    fn tensor(&self, lazily: &Option<HashMap<String, Array>>, name: &str) -> Result<Array> {
        match (&self.store, lazily) {
            (Store::Memory(t), _) => t
                .get(name)
                .cloned()
                .ok_or_else(|| BankError::Damaged { path: PathBuf::from("memory"), tensor: name.to_owned() }),
            (Store::File { path, prefix }, file) => {
                let tensor = format!("{prefix}.{name}");
                let found = file.as_ref().and_then(|f| f.get(&tensor)).cloned();
                found.ok_or_else(|| BankError::Damaged { path: path.clone(), tensor })
            }
        }
    }

    /// Factors of the awake components: `a` [rows, r], `b` [r, cols], float32, evaluated.
    ///
    /// # Errors
    /// When the file is damaged or MLX fails.
    pub fn factors(&self, awake: &Awake) -> Result<Factors> {
        let lazily = match &self.store {
            Store::Memory(_) => None,
            Store::File { path, .. } => Some(
                Array::load_safetensors(path)
                    .map_err(|_| BankError::Damaged { path: path.clone(), tensor: "(header)".into() })?,
            ),
        };
        let awake = awake.components(self.rank);
        let (mut exact, mut parked) = (Vec::new(), Vec::new());
        let rest = complement(&self.core, self.rank);
        for c in &awake {
            match self.core.binary_search(c) {
                Ok(at) => exact.push(at as u32),
                Err(_) => parked.extend(rest.binary_search(c).map(|at| at as u32)),
            }
        }
        let side = |name: &str| -> Result<Array> {
            let mut parts = Vec::new();
            if !exact.is_empty() || parked.is_empty() {
                let key = if self.core.is_empty() { "q" } else { "core" };
                parts.push(take_rows(&self.tensor(&lazily, &format!("{name}.{key}"))?, &exact)?);
            }
            if !parked.is_empty() {
                let get = |k: &str| -> Result<Array> {
                    Ok(take_rows(&self.tensor(&lazily, &format!("{name}.{k}"))?, &parked)?)
                };
                parts.push(unpark(&get("q")?, &get("scale")?, &get("low")?)?);
            }
            let all = mlx_rs::ops::concatenate(&parts, 0).and_then(|x| x.as_dtype(Dtype::Float32));
            Ok(all.context("joining components")?)
        };
        let a = side("a")?.transpose().and_then(|x| x.contiguous()).context("laying out factors")?;
        let b = side("b")?.contiguous().context("laying out factors")?;
        mlx::eval([&a, &b])?;
        Ok(Factors { a, b })
    }
}

/// The numbers below `rank` that are not in the ascending list.
fn complement(list: &[u32], rank: u32) -> Vec<u32> {
    (0..rank).filter(|c| list.binary_search(c).is_err()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mlx::spectral::to_vec;

    fn made(k: i32, rows: i32, cols: i32) -> Components {
        let draw = |shape: &[i32], seed| {
            let key = mlx_rs::random::key(seed).unwrap();
            mlx_rs::random::normal::<f32>(shape, None, None, Some(&key)).unwrap()
        };
        Components { a: draw(&[k, rows], 1), b: draw(&[k, cols], 2) }
    }

    fn row(a: &Array, r: i32) -> Vec<f64> {
        to_vec(&a.take_axis(Array::from_slice(&[r], &[1]), 0).unwrap()).unwrap()
    }

    #[test]
    fn core_is_exact_and_the_rest_close() {
        let c = made(6, 9, 7);
        let bank = Bank::new(&c, Metric::Plain, &Awake::First(3), Parking::EightBit).unwrap();
        let f = bank.factors(&Awake::First(3)).unwrap();
        assert_eq!((f.a.shape(), f.b.shape()), (&[9, 3][..], &[3, 7][..]));
        assert_eq!(row(&f.b, 2), row(&c.b, 2));
        let woken = bank.factors(&Awake::First(6)).unwrap();
        assert_eq!(row(&woken.b, 0), row(&c.b, 0));
        for (x, y) in row(&woken.b, 5).iter().zip(row(&c.b, 5)) {
            assert!((x - y).abs() < 0.03, "{x} {y}");
        }
    }

    #[test]
    fn sleeping_and_waking_any_number_of_times_changes_nothing() {
        let c = made(6, 9, 7);
        let bank = Bank::new(&c, Metric::Plain, &Awake::These(vec![0, 2, 4]), Parking::EightBit).unwrap();
        let state = Awake::These(vec![0, 1, 4]);
        let once = bank.factors(&state).unwrap();
        bank.factors(&Awake::First(1)).unwrap();
        let again = bank.factors(&state).unwrap();
        assert_eq!(to_vec(&once.a).unwrap(), to_vec(&again.a).unwrap());
        assert_eq!(to_vec(&once.b).unwrap(), to_vec(&again.b).unwrap());
    }

    #[test]
    fn exact_parking_keeps_every_bit() {
        let c = made(5, 6, 8);
        let bank = Bank::new(&c, Metric::Plain, &Awake::First(1), Parking::Exact).unwrap();
        let f = bank.factors(&Awake::First(5)).unwrap();
        assert_eq!(to_vec(&f.b).unwrap(), to_vec(&c.b).unwrap());
        assert_eq!(bank.parked_bytes(&Awake::First(1), 6, 8), 4 * 4 * 14);
    }

    #[test]
    fn nothing_awake_is_a_slice_of_rank_zero() {
        let c = made(4, 5, 6);
        let bank = Bank::new(&c, Metric::Plain, &Awake::First(0), Parking::EightBit).unwrap();
        let f = bank.factors(&Awake::First(0)).unwrap();
        assert_eq!((f.a.shape(), f.b.shape()), (&[5, 0][..], &[0, 6][..]));
    }

    #[test]
    fn a_file_gives_the_same_factors_and_a_damaged_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank.safetensors");
        let bank = Bank::new(&made(6, 9, 7), Metric::Fisher, &Awake::First(4), Parking::EightBit).unwrap();
        let tensors = bank.tensors("s");
        Array::save_safetensors(tensors.iter().map(|(k, v)| (k.as_str(), v)), None, &path).unwrap();
        let filed = Bank::in_file(&bank.record(0), &path, "s");
        let state = Awake::These(vec![1, 3, 5]);
        let (x, y) = (bank.factors(&state).unwrap(), filed.factors(&state).unwrap());
        assert_eq!(to_vec(&x.a).unwrap(), to_vec(&y.a).unwrap());
        assert!(matches!(
            Bank::in_file(&bank.record(0), &path, "other").factors(&state),
            Err(BankError::Damaged { .. })
        ));
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(filed.factors(&state), Err(BankError::Damaged { .. })));
    }
}

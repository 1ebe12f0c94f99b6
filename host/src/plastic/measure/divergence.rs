//! KL(reference ‖ of) over windows of the evaluation text.
//!
//! One subject's hidden states are kept while the model changes to the other, for as many windows as
//! [`STATE_BYTES`] allows; then the head makes logits of both, a few rows at a time.

use super::{HostMeasure, Subject};
use crate::mlx::{self, Array};
use crate::model::generate::NOT_FINITE;
use std::time::Instant;

/// Hidden states of one subject that are held at once.
const STATE_BYTES: usize = 256 << 20;

impl HostMeasure<'_> {
    /// Divergences at tokens 1.. of each window. What was measured in this step is not measured again.
    pub(super) fn diverge(
        &mut self,
        reference: Subject,
        of: Subject,
        indices: &[u32],
    ) -> Result<Vec<Vec<f32>>, String> {
        let missing = self.missing(indices, |i| self.book.divergences.contains_key(&(reference, of, i)))?;
        let (all, mut done) = (missing.len() as u64, 0);
        self.go_on(done, all)?;
        let width =
            4 * self.subjects.model().config().hidden_size * self.windows.iter().map(Vec::len).max().unwrap_or(1);
        for part in missing.chunks((STATE_BYTES / width.max(1)).max(self.batch).max(1)) {
            let batches = self.batches(part);
            let states = self.with(reference, |m| m.states_of(reference, &batches, (done, all)))?;
            self.with(of, |m| {
                let others = m.states_of(of, &batches, (done, all))?;
                for ((batch, reference_states), states) in batches.iter().zip(states).zip(others) {
                    let rows = m.compare(&reference_states, &states, (done, all))?;
                    // Windows of one batch have one length.
                    for (i, row) in batch.iter().zip(rows.chunks((rows.len() / batch.len()).max(1))) {
                        m.book.divergences.insert((reference, of, *i), row.to_vec());
                    }
                    done += batch.len() as u64;
                }
                Ok::<_, String>(())
            })?;
        }
        self.go_on(all, all)?;
        let known = |i: &u32| self.book.divergences.get(&(reference, of, *i as usize)).cloned();
        Ok(indices.iter().filter_map(known).collect())
    }

    /// Windows of one length in a row, as many as are scored together.
    fn batches(&self, windows: &[usize]) -> Vec<Vec<usize>> {
        let length = |i: &usize| self.windows.get(*i).map_or(0, Vec::len);
        let same = windows.chunk_by(|a, b| length(a) == length(b));
        same.flat_map(|s| s.chunks(self.batch.max(1))).map(<[usize]>::to_vec).collect()
    }

    fn states_of(&mut self, subject: Subject, batches: &[Vec<usize>], at: (u64, u64)) -> Result<Vec<Array>, String> {
        let mut out = Vec::with_capacity(batches.len());
        for batch in batches {
            self.go_on(at.0, at.1)?;
            let begun = Instant::now();
            let windows: Vec<&[u32]> = batch.iter().filter_map(|i| self.windows.get(*i)).map(Vec::as_slice).collect();
            let states = self.subjects.model().states(&windows).map_err(|e| e.to_string())?;
            mlx::eval([&states]).map_err(|e| e.to_string())?;
            self.book.seconds += begun.elapsed().as_secs_f64();
            if subject == Subject::Base && !is_finite(&states)? {
                return Err(NOT_FINITE.into());
            }
            out.push(states);
        }
        Ok(out)
    }

    fn compare(&mut self, reference: &Array, of: &Array, at: (u64, u64)) -> Result<Vec<f32>, String> {
        let begun = Instant::now();
        let progress = &mut self.progress;
        let compared = self.subjects.model().divergence(reference, of, &mut || progress(at.0, at.1));
        self.book.seconds += begun.elapsed().as_secs_f64();
        compared.map_err(|e| e.to_string())?.ok_or_else(|| "interrupted".into())
    }
}

/// Whether every number of an array is one.
fn is_finite(a: &Array) -> Result<bool, String> {
    let total = a.abs().and_then(|x| x.sum(None)).map_err(|e| mlx::plainly(e.what()).to_owned())?;
    let total = mlx::spectral::to_vec(&total).map_err(|e| e.to_string())?;
    Ok(total.iter().all(|x| x.is_finite()))
}

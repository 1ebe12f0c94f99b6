//! A model that runs: embedding, blocks, final norm, head.
//!
//! One thread owns a model. Activations are float32. Nothing here writes to the checkpoint.

use super::awake;
use super::block::{Block, GROUPS_PER_LAYER, KINDS, PER_LAYER, Shape, Tap};
use super::cache::{KvCache, LayerCache};
use super::config::Config;
use super::error::{Error, Result};
use super::ladder::{self, Level, Levels};
use super::linear::{Added, Factors, Linear, Weight};
use super::weights::Weights;
use crate::mlx::project::{Operand, Thin};
use crate::mlx::{self, Array, Dtype, kernels};
use std::path::Path;

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How much of an elastic checkpoint is awake; `None`: as its `elastic.json` says ([`super::awake`]).
    pub levels: Option<Levels>,
    /// Whether components that sleep are loaded too, so that [`Model::set_level`] can wake them.
    pub parked: bool,
}

/// A projection that can sleep.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceMeta {
    /// Name in the checkpoint, such as `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Layer.
    pub layer: u32,
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` or `down_proj`.
    pub kind: String,
    /// Slices with the same number read the same input.
    pub group: u32,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
}

/// Bytes a model holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resident {
    /// Projections, embedding and head as the checkpoint has them.
    pub packed: u64,
    /// Factors in place of slices, components that sleep included.
    pub factors: u64,
    /// What packs add.
    #[serde(default)]
    pub packs: u64,
    /// Norms and biases.
    pub other: u64,
}

impl Resident {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.packed + self.factors + self.packs + self.other
    }
}

/// A model that runs.
#[derive(Debug)]
pub struct Model {
    config: Config,
    slices: Vec<SliceMeta>,
    shape: Shape,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Array,
    /// `None` when tied to the embedding.
    head: Option<Weight>,
}

/// Most tokens that are scored in one pass; bounds the memory of activations.
const SCORE_TOKENS: usize = 4096;

impl Model {
    /// Loads a checkpoint directory in MLX layout; see [`super::weights`] for what is checked.
    ///
    /// # Errors
    /// When the directory is no supported checkpoint, or is damaged; the message names file and tensor.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model> {
        let (mut config, checkpoint, levels) = awake::opened(dir, options.levels.as_ref())?;
        let w = Weights::new(&checkpoint, &config)?.at(levels, options.parked);
        let tied = config.tie_word_embeddings.unwrap_or(!w.has("lm_head.weight"));
        let (v, d) = (config.vocab_size, config.hidden_size);
        let embedding = w.matrix("model.embed_tokens", v, d)?;
        let blocks = (0..config.num_hidden_layers).map(|i| Block::load(&w, &config, i)).collect::<Result<Vec<_>>>()?;
        let norm = w.vector("model.norm.weight", d)?;
        let head = if tied { None } else { Some(w.matrix("lm_head", v, d)?) };
        w.no_others(tied)?;
        config.tie_word_embeddings = Some(tied);
        Ok(Model { slices: slices(&blocks), shape: Shape::new(&config), config, embedding, blocks, norm, head })
    }

    /// The configuration; `tie_word_embeddings` is resolved.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The seven projections of each layer, in layer order q, k, v, o, gate, up, down.
    pub fn slices(&self) -> &[SliceMeta] {
        &self.slices
    }

    pub(super) fn linear(&self, slice: usize) -> &Linear {
        &self.blocks[slice / PER_LAYER].linears[slice % PER_LAYER]
    }

    /// The base's weight of a slice, float32 [rows, cols], not kept.
    ///
    /// # Errors
    /// Whatever MLX reports.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn dense_weight(&self, slice: usize) -> Result<Array> {
        let w = self.linear(slice).widened()?;
        mlx::eval([&w])?;
        Ok(w)
    }

    /// A slice as it runs, with factors on top: `x` [.., cols] to [.., rows], bias included.
    ///
    /// # Errors
    /// When shapes do not fit.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn project_with(&self, slice: usize, more: Thin, x: &Array) -> mlx::Result<Array> {
        self.linear(slice).apply_with(Some(more), x, None)
    }

    /// Dequantises every quantised slice and rounds it to float16, in memory only.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn round_to_float16(&mut self) -> Result<()> {
        for b in &mut self.blocks {
            for i in 0..PER_LAYER {
                b.linear_mut(i).weight.round_to_float16()?;
            }
        }
        Ok(())
    }

    /// How the checkpoint quantises a slice; `None` for floats.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn scheme(&self, slice: usize) -> Option<crate::mlx::quant::Scheme> {
        self.linear(slice).scheme()
    }

    /// What an elastic checkpoint stores of a slice and is in memory; `None` for a weight alone.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn stored(&self, slice: usize) -> Option<ladder::Stored> {
        self.linear(slice).stored()
    }

    /// How much of a slice of an elastic checkpoint is awake; `None` for a weight alone.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn level(&self, slice: usize) -> Option<Level> {
        self.linear(slice).level()
    }

    /// Whether a slice is stored as rows of its own and coefficients.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn is_pivoted(&self, slice: usize) -> bool {
        self.linear(slice).weight.is_pivoted()
    }

    /// The components of an elastic checkpoint that are awake in a slice, widened; `None` where its weight runs alone.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn components(&self, slice: usize) -> Option<mlx::Result<Factors>> {
        Some(self.linear(slice).part()?.factors())
    }

    /// Changes how much of a slice of an elastic checkpoint is awake. Looks at another part of the same memory:
    /// nothing is copied.
    ///
    /// # Errors
    /// When so much is not in memory; the slice is as before then.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn set_level(&mut self, slice: usize, level: Level) -> Result<()> {
        let fits = match (self.stored(slice), level) {
            (Some(s), Level::Dense) => s.dense,
            (Some(s), Level::Rank(r)) => r <= s.rank,
            (None, _) => false,
        };
        if !fits {
            let name = &self.slices[slice].name;
            return Err(Error::Request(format!("{name}: {level:?} is not in memory; load the model with more awake")));
        }
        Ok(self.blocks[slice / PER_LAYER].linear_mut(slice % PER_LAYER).set_level(level)?)
    }

    /// Changes how much of every slice that is named is awake, all or nothing.
    ///
    /// # Errors
    /// When one of the levels is not in memory, or a name is no slice's; every slice is as before then.
    pub fn set_levels(&mut self, levels: &Levels) -> Result<()> {
        let mut changes = Vec::with_capacity(levels.len());
        for (name, level) in levels {
            let unknown = || Error::Request(format!("{name}: this model has no such slice"));
            let slice = self.slices.iter().position(|s| s.name == *name).ok_or_else(unknown)?;
            changes.push((slice, self.level(slice), *level));
        }
        for (i, (slice, _, level)) in changes.iter().enumerate() {
            if let Err(e) = self.set_level(*slice, *level) {
                for (slice, before, _) in changes.iter().take(i) {
                    if let Some(before) = before {
                        // It was awake a moment ago.
                        self.set_level(*slice, *before)?;
                    }
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// How much is awake of every slice that can change, by name; empty for a model that is not elastic.
    pub fn levels(&self) -> Levels {
        let of = |(i, s): (usize, &SliceMeta)| Some((s.name.clone(), self.level(i)?));
        self.slices.iter().enumerate().filter_map(of).collect()
    }

    /// The bias [rows] of a slice, where it has one; factors leave it as it is.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn bias(&self, slice: usize) -> Option<&Array> {
        self.linear(slice).bias.as_ref()
    }

    /// Puts factors in the place of a slice's weight, or with `None` the base's own weight back: outputs
    /// are then bit for bit what they were.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn set_factors(&mut self, slice: usize, factors: Option<Factors>) {
        self.blocks[slice / PER_LAYER].linear_mut(slice % PER_LAYER).set_factors(factors);
    }

    /// The factors that stand in for a slice.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn factors(&self, slice: usize) -> Option<&Factors> {
        self.linear(slice).factors()
    }

    /// Adds to the outputs of a slice what packs hold, or with `None` nothing any more.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn set_added(&mut self, slice: usize, added: Option<Added>) {
        self.blocks[slice / PER_LAYER].linear_mut(slice % PER_LAYER).added = added;
    }

    /// What packs add to a slice.
    ///
    /// # Panics
    /// When `slice` is no index into [`Model::slices`].
    pub fn added(&self, slice: usize) -> Option<&Added> {
        self.linear(slice).added.as_ref()
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.blocks.len())
    }

    /// An empty cache of `rows` sequences for this model.
    pub fn new_cache_of(&self, rows: usize) -> KvCache {
        KvCache::with_rows(self.blocks.len(), rows)
    }

    /// Whether every id is in the vocabulary.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            Some(id) => Err(self.bad_token(i64::from(*id))),
            None => Ok(()),
        }
    }

    /// Token ids [B, T] int32 to embeddings [B, T, D].
    ///
    /// # Errors
    /// When an id is not in the vocabulary: MLX would read beyond the table.
    pub fn embed(&self, tokens: &Array) -> Result<Array> {
        let tokens = tokens.as_dtype(Dtype::Int32)?;
        mlx::eval([&tokens])?;
        let ids = tokens.try_as_slice::<i32>().map_err(|e| Error::Request(format!("token ids cannot be read: {e}")))?;
        if let Some(id) = ids.iter().find(|id| **id < 0 || **id as usize >= self.config.vocab_size) {
            return Err(self.bad_token(i64::from(*id)));
        }
        Ok(self.embedding.lookup(&tokens)?)
    }

    fn bad_token(&self, id: i64) -> Error {
        Error::Request(format!(
            "token id {id} is not in the vocabulary of {} ids: the text was tokenised for another model",
            self.config.vocab_size
        ))
    }

    /// `h` [B, T, D] through layer `i`; positions go on where `cache` ends.
    ///
    /// # Errors
    /// Whatever MLX or the tap reports.
    ///
    /// # Panics
    /// When there is no layer `i`.
    pub fn layer(
        &self,
        i: usize,
        h: &Array,
        cache: Option<&mut LayerCache>,
        tap: Option<&dyn Tap>,
    ) -> mlx::Result<Array> {
        self.blocks[i].forward(&self.shape, i * PER_LAYER, h, cache, tap)
    }

    /// The norm before the head.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn final_norm(&self, h: &Array) -> mlx::Result<Array> {
        kernels::rms_norm(h, &self.norm, self.config.rms_norm_eps)
    }

    fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The head [V, D] as it is stored: `lm_head`, or the embedding when tied.
    ///
    /// # Errors
    /// When it is stored as no one matrix.
    pub fn head_weight(&self) -> Result<Operand<'_>> {
        self.head().operand().ok_or_else(|| Error::Request("the head is stored as no one matrix".into()))
    }

    /// Token ids [B, T] int32 to hidden states [B, T, D] after the final norm.
    ///
    /// # Errors
    /// When an id is not in the vocabulary or the context is longer than the attention window.
    pub fn hidden(&self, tokens: &Array, cache: Option<&mut KvCache>) -> Result<Array> {
        self.states_of(self.embed(tokens)?, cache)
    }

    /// The same for `rows` sequences of equal length, one after another in `ids`: nothing is computed to check them.
    ///
    /// # Errors
    /// As [`Model::hidden`], and when `ids` cannot be cut into `rows`.
    pub fn hidden_of(&self, ids: &[u32], rows: usize, cache: Option<&mut KvCache>) -> Result<Array> {
        self.check_ids(ids)?;
        if rows == 0 || !ids.len().is_multiple_of(rows) {
            return Err(Error::Request(format!("{} tokens are no {rows} sequences of one length", ids.len())));
        }
        // Below the size of the vocabulary, so they fit.
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let tokens = Array::from_slice(&ids, &[rows as i32, (ids.len() / rows) as i32]);
        self.states_of(self.embedding.lookup(&tokens)?, cache)
    }

    /// Embeddings [B, T, D] to hidden states after the final norm.
    fn states_of(&self, mut h: Array, mut cache: Option<&mut KvCache>) -> Result<Array> {
        let past = cache.as_ref().map_or(0, |c| c.len());
        self.config.check_context(past + h.shape().get(1).map_or(0, |t| *t as usize))?;
        for i in 0..self.blocks.len() {
            let layer_cache = cache.as_mut().and_then(|c| c.layers.get_mut(i));
            h = self.layer(i, &h, layer_cache, None)?;
        }
        Ok(self.final_norm(&h)?)
    }

    /// Hidden states [.., D] to logits [.., V].
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn logits(&self, hidden: &Array) -> Result<Array> {
        Ok(self.head().apply(hidden)?)
    }

    /// Negative log-likelihood (nats) of tokens 1.. of each window, given those before.
    ///
    /// Windows of equal length run together; the answer has the order of the windows. The sum over the
    /// vocabulary is exact to float64 or pairwise rounding.
    ///
    /// # Errors
    /// When a window has fewer than two tokens or an id that is not in the vocabulary.
    pub fn score(&self, windows: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        for (i, w) in windows.iter().enumerate() {
            if w.len() < 2 {
                return Err(Error::Request(format!("window {i} has {} tokens; scoring needs at least two", w.len())));
            }
            if let Some(id) = w.iter().find(|id| **id as usize >= self.config.vocab_size) {
                return Err(self.bad_token(i64::from(*id)));
            }
        }
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by_key(|i| windows[*i].len());
        let mut out = vec![Vec::new(); windows.len()];
        for same in order.chunk_by(|a, b| windows[*a].len() == windows[*b].len()) {
            let len = same.first().map_or(2, |i| windows[*i].len());
            for batch in same.chunks((SCORE_TOKENS / (len - 1)).max(1)) {
                let rows: Vec<&[u32]> = batch.iter().map(|i| windows[*i].as_slice()).collect();
                for (i, nll) in batch.iter().zip(self.score_batch(&rows, len)?) {
                    out[*i] = nll;
                }
            }
        }
        Ok(out)
    }

    /// Windows of one length, all of them together.
    fn score_batch(&self, windows: &[&[u32]], len: usize) -> Result<Vec<Vec<f32>>> {
        let targets: Vec<i32> = windows.iter().flat_map(|w| &w[1..]).map(|id| *id as i32).collect();
        let hidden = self.states(windows)?;
        let targets = Array::from_slice(&targets, &[targets.len() as i32]);
        let nll = kernels::token_nll(&hidden, self.head_weight()?, &targets)?;
        mlx::eval([&nll])?;
        let nll = nll.try_as_slice::<f32>().map_err(|e| Error::Request(format!("losses cannot be read: {e}")))?;
        Ok(nll.chunks(len - 1).map(<[f32]>::to_vec).collect())
    }

    /// What tokens 1.. of each window are predicted from: hidden states [N, D] of windows of one length, at
    /// all positions but the last.
    ///
    /// # Errors
    /// When an id is not in the vocabulary, or the windows differ in length or have fewer than two tokens.
    pub fn states(&self, windows: &[&[u32]]) -> Result<Array> {
        let len = windows.first().map_or(0, |w| w.len());
        if len < 2 || windows.iter().any(|w| w.len() != len) {
            return Err(Error::Request("windows of one length, of two tokens or more, are compared together".into()));
        }
        let ids: Vec<i32> = windows.iter().flat_map(|w| &w[..len - 1]).map(|id| *id as i32).collect();
        let (b, t) = (windows.len() as i32, (len - 1) as i32);
        Ok(self.hidden(&Array::from_slice(&ids, &[b, t]), None)?.reshape(&[b * t, -1])?)
    }

    /// Bytes held in memory.
    pub fn resident(&self) -> Resident {
        let mut r = Resident { other: self.norm.nbytes() as u64, ..Resident::default() };
        let mut count = |w: &Weight| {
            r.packed += w.nbytes();
        };
        count(&self.embedding);
        self.head.iter().for_each(&mut count);
        self.blocks.iter().flat_map(|b| &b.linears).for_each(|l| count(&l.weight));
        for b in &self.blocks {
            r.other += b.other_bytes();
            r.factors += b.linears.iter().filter_map(Linear::factors).map(Factors::nbytes).sum::<u64>();
            r.factors += b.linears.iter().map(Linear::ladder_bytes).sum::<u64>();
            r.packs += b.linears.iter().filter_map(|l| l.added.as_ref()).map(Added::nbytes).sum::<u64>();
        }
        r
    }
}

fn slices(blocks: &[Block]) -> Vec<SliceMeta> {
    let of_layer = |(layer, block): (usize, &Block)| -> Vec<SliceMeta> {
        let meta = |(l, (room, kind, group)): (&Linear, &(&str, &str, u32))| SliceMeta {
            name: format!("model.layers.{layer}.{room}.{kind}"),
            layer: layer as u32,
            kind: (*kind).to_owned(),
            group: layer as u32 * GROUPS_PER_LAYER + group,
            rows: l.weight.rows as u32,
            cols: l.weight.cols as u32,
        };
        block.linears.iter().zip(&KINDS).map(meta).collect()
    };
    blocks.iter().enumerate().flat_map(of_layer).collect()
}

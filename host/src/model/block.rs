//! The decoder block that all architectures share; the formulas are in [`super::arch::llama`].

use super::cache::LayerCache;
use super::config::Config;
use super::error::Result;
use super::linear::Linear;
use super::weights::Weights;
use crate::mlx::decode::Attention;
use crate::mlx::{self, Array, Context, kernels};
#[cfg(target_os = "linux")]
use crate::mlx::{
    decode::Place,
    layer::{Layer, Parts},
    project::{Projection, Thin},
};
#[cfg(target_os = "linux")]
use std::cell::OnceCell;

/// Number of projections a layer has: q, k, v, o, gate, up, down.
pub(crate) const PER_LAYER: usize = 7;

/// The projections of a layer in order: name under the layer, and which share their input.
pub(crate) const KINDS: [(&str, &str, u32); PER_LAYER] = [
    ("self_attn", "q_proj", 0),
    ("self_attn", "k_proj", 0),
    ("self_attn", "v_proj", 0),
    ("self_attn", "o_proj", 1),
    ("mlp", "gate_proj", 2),
    ("mlp", "up_proj", 2),
    ("mlp", "down_proj", 3),
];

/// Groups of projections that share an input, per layer.
pub(crate) const GROUPS_PER_LAYER: u32 = 4;

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// Sees the input and output of every projection and may replace the output.
///
/// `slice` indexes [`super::Model::slices`], `x` is [.., cols], `y` (bias included) [.., rows].
pub trait Tap {
    /// Called after each projection; what it answers takes the place of `y`.
    ///
    /// # Errors
    /// An error ends the forward pass and comes out of it.
    fn linear(&self, slice: usize, x: &Array, y: Array) -> mlx::Result<Array>;
}

/// Sizes and constants of the attention, the same in every layer.
#[derive(Debug)]
pub(crate) struct Shape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    eps: f32,
    /// `1 / sqrt(d)`, times the square of YaRN's magnitude.
    scale: f32,
    traditional: bool,
    frequencies: Array,
}

impl Shape {
    pub(crate) fn new(c: &Config) -> Shape {
        let frequencies = c.rope.frequencies();
        Shape {
            heads: c.num_attention_heads as i32,
            kv_heads: c.num_key_value_heads as i32,
            head_dim: c.head_dim as i32,
            eps: c.rms_norm_eps,
            scale: (c.rope.magnitude().powi(2) / (c.head_dim as f64).sqrt()) as f32,
            traditional: c.rope.traditional,
            frequencies: Array::from_slice(&frequencies, &[frequencies.len() as i32]),
        }
    }

    /// Turns `x` [B, H, T, d] by its positions, which begin at 0.
    fn rope(&self, x: &Array) -> mlx::Result<Array> {
        kernels::rope(x, self.head_dim, self.traditional, 0, &self.frequencies)
    }
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Block {
    input_norm: Array,
    post_norm: Array,
    /// Weights [d] over each head of q and k; Qwen3.
    qk_norm: Option<(Array, Array)>,
    /// Changed through [`Block::linear_mut`] only.
    pub(crate) linears: [Linear; PER_LAYER],
    /// All of it as one operation, once it was asked for; `None` where the kernels do not know all of it.
    #[cfg(target_os = "linux")]
    whole: OnceCell<Option<Layer>>,
}

impl Block {
    pub(crate) fn load(w: &Weights, c: &Config, layer: usize) -> Result<Block> {
        let at = format!("model.layers.{layer}");
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let b = &c.family;
        let attn = |name: &str, rows, cols, bias| w.linear(&format!("{at}.self_attn.{name}"), rows, cols, bias);
        let mlp = |name: &str, rows, cols| w.linear(&format!("{at}.mlp.{name}"), rows, cols, b.mlp_bias);
        let qk_norm = match b.qk_norm {
            false => None,
            true => {
                let norm = |name: &str| w.vector(&format!("{at}.self_attn.{name}.weight"), c.head_dim);
                Some((norm("q_norm")?, norm("k_norm")?))
            }
        };
        Ok(Block {
            input_norm: w.vector(&format!("{at}.input_layernorm.weight"), d)?,
            post_norm: w.vector(&format!("{at}.post_attention_layernorm.weight"), d)?,
            qk_norm,
            linears: [
                attn("q_proj", q, d, b.qkv_bias)?,
                attn("k_proj", kv, d, b.qkv_bias)?,
                attn("v_proj", kv, d, b.qkv_bias)?,
                attn("o_proj", d, q, b.o_bias)?,
                mlp("gate_proj", f, d)?,
                mlp("up_proj", f, d)?,
                mlp("down_proj", d, f)?,
            ],
            #[cfg(target_os = "linux")]
            whole: OnceCell::new(),
        })
    }

    /// Bytes of norms and biases.
    pub(crate) fn other_bytes(&self) -> u64 {
        let qk = self.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        let biases = self.linears.iter().filter_map(|l| l.bias.as_ref());
        [&self.input_norm, &self.post_norm].into_iter().chain(qk).chain(biases).map(|a| a.nbytes() as u64).sum()
    }

    /// `h` [B, T, D] through the layer; positions go on where `cache` ends.
    pub(crate) fn forward(
        &self,
        s: &Shape,
        first_slice: usize,
        h: &Array,
        cache: Option<&mut LayerCache>,
        tap: Option<&dyn Tap>,
    ) -> mlx::Result<Array> {
        #[cfg(target_os = "linux")]
        let cache = match (cache, tap) {
            (Some(cache), None) => match self.at_once(s, h, cache)? {
                Some(h) => return Ok(h),
                None => Some(cache),
            },
            (cache, _) => cache,
        };
        let project = |i: usize, x: &Array| {
            let y = self.linears[i].apply(x, None)?;
            match tap {
                None => Ok(y),
                Some(t) => t.linear(first_slice + i, x, y),
            }
        };
        let project_onto = |h: &Array, i: usize, x: &Array| match tap {
            None => self.linears[i].apply(x, Some(h)),
            Some(_) => h.add(project(i, x)?).context("residual"),
        };
        let n = kernels::rms_norm(h, &self.input_norm, s.eps)?;
        let a = self.attention(s, project(Q, &n)?, project(K, &n)?, project(V, &n)?, cache)?;
        let h = project_onto(h, O, &a)?;
        let n = kernels::rms_norm(&h, &self.post_norm, s.eps)?;
        let a = kernels::swiglu(&project(GATE, &n)?, &project(UP, &n)?)?;
        project_onto(&h, DOWN, &a)
    }

    fn how<'a>(&'a self, s: &'a Shape) -> Attention<'a> {
        Attention {
            scale: s.scale,
            freqs: &s.frequencies,
            traditional: s.traditional,
            norms: self.qk_norm.as_ref().map(|(q, k)| (q, k)),
            eps: s.eps,
        }
    }

    /// A projection, to be changed.
    pub(crate) fn linear_mut(&mut self, i: usize) -> &mut Linear {
        #[cfg(target_os = "linux")]
        {
            self.whole = OnceCell::new();
        }
        &mut self.linears[i]
    }

    /// The whole layer in one operation; `None` where the kernels do not know all of it.
    #[cfg(target_os = "linux")]
    fn at_once(&self, s: &Shape, h: &Array, cache: &mut LayerCache) -> mlx::Result<Option<Array>> {
        if self.whole.get().is_none() {
            let made = self.make_whole(s)?;
            self.whole.get_or_init(|| made);
        }
        let Some(layer) = self.whole.get().and_then(Option::as_ref) else { return Ok(None) };
        let step = |held, place: Place| layer.apply(h, held, place);
        cache.step((h.dim(0), h.dim(1)), (s.kv_heads, s.head_dim), step).map(Some)
    }

    #[cfg(target_os = "linux")]
    fn make_whole(&self, s: &Shape) -> mlx::Result<Option<Layer>> {
        let mut factors: [Vec<Thin>; PER_LAYER] = Default::default();
        let mut projections = [Projection::default(); PER_LAYER];
        for ((p, l), f) in projections.iter_mut().zip(&self.linears).zip(&mut factors) {
            match l.projection(None, f) {
                Some(known) if known.is_native() => *p = known,
                _ => return Ok(None),
            }
        }
        let parts = Parts {
            input_norm: &self.input_norm,
            post_norm: &self.post_norm,
            projections: &projections,
            kv_heads: s.kv_heads,
            how: self.how(s),
        };
        Layer::new(&parts).map(Some)
    }

    /// q [B, T, H·d], k and v [B, T, Hkv·d] to [B, T, H·d].
    fn attention(&self, s: &Shape, q: Array, k: Array, v: Array, cache: Option<&mut LayerCache>) -> mlx::Result<Array> {
        if let Some(cache) = cache {
            let how = self.how(s);
            return cache.attend(&q, &k, &v, (s.kv_heads, s.head_dim), &how);
        }
        let (b, t) = (q.dim(0), q.dim(1));
        let split = |y: Array, heads: i32, norm: Option<&Array>| {
            let y = y.reshape(&[b, t, heads, s.head_dim]).context("splitting heads")?;
            let y = match norm {
                Some(w) => kernels::rms_norm(&y, w, s.eps)?,
                None => y,
            };
            y.transpose_axes(&[0, 2, 1, 3]).context("splitting heads")
        };
        let (q_norm, k_norm) = self.qk_norm.as_ref().map_or((None, None), |(q, k)| (Some(q), Some(k)));
        let q = s.rope(&split(q, s.heads, q_norm)?)?;
        let k = s.rope(&split(k, s.kv_heads, k_norm)?)?;
        let v = split(v, s.kv_heads, None)?;
        let a = kernels::attention(&q, &k, &v, s.scale, t > 1)?;
        a.transpose_axes(&[0, 2, 1, 3]).and_then(|a| a.reshape(&[b, t, s.heads * s.head_dim])).context("joining heads")
    }
}

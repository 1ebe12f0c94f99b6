//! Values of the block types that MLX has no groups for, computed as ggml does.
//!
//! Q2_K, Q3_K and Q6_K scale sixteen values at a time; MLX's smallest group is 32. They can be expanded
//! to floats, which costs memory and, stored as f16, half a unit in the last place.

use super::blocks::{BlockType, half_at};

/// The values of whole blocks; empty for types this is not for. Bytes after the last block are ignored.
pub fn expand(block: BlockType, data: &[u8]) -> Vec<f32> {
    let one: fn(&[u8], usize) -> f32 = match block.to_string().as_str() {
        "Q2_K" => q2_k,
        "Q3_K" => q3_k,
        "Q6_K" => q6_k,
        _ => return Vec::new(),
    };
    let (values, bytes) = block.layout();
    data.chunks_exact(bytes as usize).flat_map(|b| (0..values as usize).map(move |i| one(b, i))).collect()
}

/// Sixteen bytes with a 4-bit scale and minimum each, 64 bytes of 2-bit codes, d, dmin.
fn q2_k(b: &[u8], i: usize) -> f32 {
    let code = two_bits(&b[16..80], i);
    let s = b[i / 16];
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    d * f32::from(s & 15) * f32::from(code) - dmin * f32::from(s >> 4)
}

/// 32 bytes of high bits, 64 bytes of 2-bit codes, twelve bytes of 6-bit scales, d.
fn q3_k(b: &[u8], i: usize) -> f32 {
    // A high bit that is not set takes 4 away.
    let high = (b[i % 32] >> (i / 32)) & 1;
    let code = two_bits(&b[32..96], i) as i8 - if high == 1 { 0 } else { 4 };
    let j = i / 16;
    let scales = &b[96..108];
    let low = (scales[j % 8] >> (4 * (j / 8))) & 15;
    let top = (scales[8 + j % 4] >> (2 * (j / 4))) & 3;
    let scale = (low | top << 4) as i8 - 32;
    half_at(b, 108) * f32::from(scale) * f32::from(code)
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, sixteen signed scales, d.
fn q6_k(b: &[u8], i: usize) -> f32 {
    let (half, r) = (i / 128, i % 128);
    let low = (b[64 * half + r % 64] >> (4 * (r / 64))) & 15;
    let high = (b[128 + 32 * half + r % 32] >> (2 * (r / 32))) & 3;
    let code = (low | high << 4) as i8 - 32;
    half_at(b, 208) * f32::from(b[192 + i / 16] as i8) * f32::from(code)
}

/// 2-bit codes: 32 bytes hold 128 values, pair `k` of every byte the values 32k.. of the half.
fn two_bits(q: &[u8], i: usize) -> u8 {
    let (half, r) = (i / 128, i % 128);
    (q[32 * half + r % 32] >> (2 * (r / 32))) & 3
}

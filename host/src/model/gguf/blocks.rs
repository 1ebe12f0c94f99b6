//! How GGUF stores values, and the exact translation of its blocks into MLX's affine groups.
//!
//! An affine group of MLX is 32 codes with `value = scale · code + bias`, codes packed as one
//! little-endian bit stream in `u32` words. Seven block types are that already, up to the order of bits:
//!
//! | block | code | scale | bias |
//! | --- | --- | --- | --- |
//! | Q4_0 | 4 bits | d | −8 d |
//! | Q4_1 | 4 bits | d | m |
//! | Q5_0 | 5 bits | d | −16 d |
//! | Q5_1 | 5 bits | d | m |
//! | Q8_0 | q + 128, 8 bits | d | −128 d |
//! | Q4_K | 4 bits | d · sc | −dmin · mn |
//! | Q5_K | 5 bits | d · sc | −dmin · mn |
//!
//! A power of two times an f16 is exact in f16 unless it overflows; products of an f16 and a 6-bit
//! integer are exact in f32. So scales are kept in f16 where that loses nothing and in f32 elsewhere,
//! and `scale · code + bias` in f32 is bit for bit what ggml's own dequantisation gives.
//! Block layouts: ggml's `ggml-common.h` and `ggml-quants.c`.

use half::f16;

/// Codes in a group.
pub const GROUP: usize = 32;

/// How the values of a tensor are stored: a type of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockType {
    id: u32,
    name: &'static str,
    values: u64,
    bytes: u64,
}

/// Every type of ggml that a file may hold: number, name, values and bytes of a block.
const TYPES: [(u32, &str, u64, u64); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// What an import can do with a block type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Floats, copied as they are.
    Plain(safetensors::Dtype),
    /// Becomes affine groups of 32 without loss.
    Affine {
        /// Bits of a code.
        bits: u32,
    },
    /// Groups that MLX does not have: can only be expanded, which rounds to f16.
    Expandable,
    /// Not for weights, or unknown to this program.
    Unsupported,
}

impl BlockType {
    /// The type with this number, if ggml has one.
    pub fn from_id(id: u32) -> Option<BlockType> {
        let (id, name, values, bytes) = TYPES.into_iter().find(|t| t.0 == id)?;
        Some(BlockType { id, name, values, bytes })
    }

    /// Values and bytes of one block.
    pub fn layout(self) -> (u64, u64) {
        (self.values, self.bytes)
    }

    /// What an import does with it.
    pub fn encoding(self) -> Encoding {
        match self.name {
            "F32" => Encoding::Plain(safetensors::Dtype::F32),
            "F16" => Encoding::Plain(safetensors::Dtype::F16),
            "BF16" => Encoding::Plain(safetensors::Dtype::BF16),
            "Q4_0" | "Q4_1" | "Q4_K" => Encoding::Affine { bits: 4 },
            "Q5_0" | "Q5_1" | "Q5_K" => Encoding::Affine { bits: 5 },
            "Q8_0" => Encoding::Affine { bits: 8 },
            "Q2_K" | "Q3_K" | "Q6_K" => Encoding::Expandable,
            _ => Encoding::Unsupported,
        }
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Thirty-two codes with their scale and bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Unsigned codes in the order of values.
    pub codes: [u8; GROUP],
    /// Multiplies a code.
    pub scale: f32,
    /// Is added to the product.
    pub bias: f32,
}

/// Calls `each` with every affine group of `data`, which holds whole blocks of an affine type.
/// Bytes after the last whole block are ignored.
pub fn groups(block: BlockType, data: &[u8], each: &mut impl FnMut(Group)) {
    for b in data.chunks_exact(block.bytes as usize) {
        match block.name {
            "Q4_0" => {
                let d = half_at(b, 0);
                each(Group { codes: nibbles(&b[2..]), scale: d, bias: -8.0 * d });
            }
            "Q4_1" => each(Group { codes: nibbles(&b[4..]), scale: half_at(b, 0), bias: half_at(b, 2) }),
            "Q5_0" => {
                let d = half_at(b, 0);
                each(Group { codes: five_bits(&b[2..6], &b[6..]), scale: d, bias: -16.0 * d });
            }
            "Q5_1" => {
                each(Group { codes: five_bits(&b[4..8], &b[8..]), scale: half_at(b, 0), bias: half_at(b, 2) });
            }
            "Q8_0" => {
                let d = half_at(b, 0);
                let codes = std::array::from_fn(|i| b[2 + i].wrapping_add(128));
                each(Group { codes, scale: d, bias: -128.0 * d });
            }
            "Q4_K" => k_groups(b, |j, i| (b[16 + 32 * (j / 2) + i] >> (4 * (j % 2))) & 15, each),
            "Q5_K" => {
                let code = |j: usize, i: usize| {
                    let low = (b[48 + 32 * (j / 2) + i] >> (4 * (j % 2))) & 15;
                    low | ((b[16 + i] >> j) & 1) << 4
                };
                k_groups(b, code, each);
            }
            _ => {}
        }
    }
}

/// The eight groups of a 256-value K block: f16 `d` and `dmin`, then twelve bytes with eight 6-bit
/// scales and eight 6-bit minima, then the codes that `code(group, position)` finds.
fn k_groups(b: &[u8], code: impl Fn(usize, usize) -> u8, each: &mut impl FnMut(Group)) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let packed = &b[4..16];
    for j in 0..8 {
        let (scale, min) = six_bits(packed, j);
        let codes = std::array::from_fn(|i| code(j, i));
        each(Group { codes, scale: d * f32::from(scale), bias: -(dmin * f32::from(min)) });
    }
}

/// Scale and minimum of sub-block `j` of 8 in a K block (`get_scale_min_k4` in ggml-quants.c).
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    }
}

/// Sixteen bytes of nibbles: low halves are values 0..16, high halves 16..32.
fn nibbles(q: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 })
}

/// Nibbles with a fifth bit each, in the order of values.
fn five_bits(high: &[u8], q: &[u8]) -> [u8; GROUP] {
    let low = nibbles(q);
    std::array::from_fn(|i| low[i] | ((high[i / 8] >> (i % 8)) & 1) << 4)
}

/// The f16 at a byte offset, widened.
pub fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Appends the codes as a little-endian stream of `bits` bits each: MLX's packing, for every width
/// that divides 32 codes into whole words (4, 5 and 8 do).
pub fn pack(codes: &[u8; GROUP], bits: u32, out: &mut Vec<u8>) {
    let (mut window, mut filled) = (0u32, 0);
    for &code in codes {
        window |= u32::from(code) << filled;
        filled += bits;
        while filled >= 8 {
            out.push(window as u8);
            window >>= 8;
            filled -= 8;
        }
    }
}

/// True where the number survives f16.
pub fn fits_f16(x: f32) -> bool {
    f16::from_f32(x).to_f32() == x
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn named(name: &str) -> BlockType {
        TYPES.iter().find(|t| t.1 == name).and_then(|t| BlockType::from_id(t.0)).unwrap()
    }

    /// The values MLX computes from packed codes, scale and bias.
    fn affine(block: BlockType, bits: u32, data: &[u8]) -> Vec<f32> {
        let mut values = Vec::new();
        groups(block, data, &mut |g| {
            let mut packed = Vec::new();
            pack(&g.codes, bits, &mut packed);
            assert_eq!(packed.len(), 4 * bits as usize);
            for i in 0..GROUP as u32 {
                let bit = |k: u32| (packed[(k / 8) as usize] >> (k % 8)) & 1;
                let code: u32 = (0..bits).map(|k| u32::from(bit(i * bits + k)) << k).sum();
                values.push(g.scale * code as f32 + g.bias);
            }
        });
        values
    }

    /// gguf-py's values of random blocks, bit for bit.
    #[test]
    fn every_block_type_equals_the_reference() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/golden/gguf/blocks.json")).unwrap();
        let types = golden["types"].as_object().unwrap();
        assert_eq!(types.len(), 10);
        for (name, case) in types {
            let hex = case["blocks"].as_str().unwrap();
            let data: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            let want: Vec<f32> =
                case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let got = match named(name).encoding() {
                Encoding::Affine { bits } => affine(named(name), bits, &data),
                Encoding::Expandable => super::super::expand::expand(named(name), &data),
                other => panic!("{name} is {other:?}"),
            };
            assert_eq!(got.len(), want.len(), "{name}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                // Zeros of either sign are equal.
                assert!(g == w, "{name} value {i}: {g} is not {w}");
            }
        }
    }

    proptest! {
        /// The three plain types over all finite scales, against their one-line definitions.
        #[test]
        fn affine_groups_equal_the_definition(q in any::<[u8; 32]>(), d in any::<u16>(), m in any::<u16>()) {
            let (dh, mh) = (f16::from_bits(d), f16::from_bits(m));
            prop_assume!(dh.is_finite() && mh.is_finite());
            let (d, m) = (dh.to_f32(), mh.to_f32());
            let nibble = |i: usize| f32::from(if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 });
            let cases: [(&str, u32, Vec<u8>, Vec<f32>); 3] = [
                ("Q4_0", 4, [&dh.to_le_bytes()[..], &q[..16]].concat(), (0..32).map(|i| d * (nibble(i) - 8.0)).collect()),
                ("Q4_1", 4, [&dh.to_le_bytes()[..], &mh.to_le_bytes(), &q[..16]].concat(), (0..32).map(|i| d * nibble(i) + m).collect()),
                ("Q8_0", 8, [&dh.to_le_bytes()[..], &q].concat(), q.iter().map(|&x| d * f32::from(x as i8)).collect()),
            ];
            for (name, bits, block, want) in cases {
                prop_assert_eq!(affine(named(name), bits, &block), want, "{}", name);
            }
        }
    }

    #[test]
    fn nibble_order_is_ggmls() {
        // Byte k of a block holds value k (low) and value k+16 (high).
        let q: Vec<u8> = (0..16u8).map(|k| k | (15 - k) << 4).collect();
        let codes = nibbles(&q);
        assert_eq!(codes[..16], (0..16).collect::<Vec<u8>>());
        assert_eq!(codes[16..], (0..16).rev().collect::<Vec<u8>>());
        // MLX: value 0 in the lowest bits of the first word.
        let mut packed = Vec::new();
        pack(&codes, 4, &mut packed);
        assert_eq!(u32::from_le_bytes(packed[..4].try_into().unwrap()), 0x7654_3210);
    }

    #[test]
    fn an_overflowing_bias_does_not_fit_f16() {
        let d = f16::MAX.to_le_bytes();
        let mut b = vec![d[0], d[1]];
        b.extend([0x88; 16]);
        groups(named("Q4_0"), &b, &mut |g| {
            assert!(fits_f16(g.scale) && !fits_f16(g.bias));
            assert_eq!(g.bias, -8.0 * 65504.0);
        });
        assert!(fits_f16(f16::from_bits(1).to_f32() * -8.0), "subnormals scale exactly");
    }
}

// Attention over a cache of keys and values whose rows hold pasts of different length, from the projections'
// outputs to the input of the next one: heads split, q and k normed (where the model does), turned by their
// positions, k and v appended to the cache in place, then attention.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pk {

// A [B, T, n] tensor whose last axis lies together; strides in elements.
struct RowsOf {
  const float* data;
  ptrdiff_t b, t;
  const float* at(int bi, int ti) const { return data + bi * b + ti * t; }
};

struct CachedAttention {
  int B, T, H, Hkv, D, capacity; // B sequences of T new positions; H a multiple of Hkv, D even
  float scale, eps;
  bool traditional;          // pairs that turn are neighbours, not halves
  const int* rows;           // [B] cache row of each sequence, no two the same; null: sequence b is row b
  const int* past;           // [rows of the cache] positions each row holds; past + T <= capacity
  RowsOf q, k, v;            // [B, T, H * D], [B, T, Hkv * D] twice
  const float* freqs;        // [D / 2] position p turns pair i by p / freqs[i]
  const float *q_norm, *k_norm; // [D] weights of a norm over each head; null: none
  float *keys, *values;      // [rows of the cache, Hkv, capacity, D]
  float* out;                // [B, T, H * D]
};

// Position t of sequence b stands at past + t and sees the positions 0 to past + t of its row. Nothing beyond
// them is read. Uses the pool's threads; call it from one thread. Uses that thread's scratch slots 0 to 3, 5 and 6:
// no pointer here may lie in those.
void run(const CachedAttention& a);

} // namespace pk

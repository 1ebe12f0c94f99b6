// Vectors of the widest kind this compilation may use, and the exponential on them.
#pragma once
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "table.h"

#if defined(__AVX512F__)
#define PK_VL 16
#define PK_MR 12 // 12 x 2 accumulators, 2 of b, the rest for a: 32 registers
#elif defined(__AVX2__)
#define PK_VL 8
#define PK_MR 6
#elif defined(__aarch64__)
#define PK_VL 4
#define PK_MR 12
#else
#define PK_VL 4
#define PK_MR 6
#endif

namespace pk {
namespace PK_ISA {

constexpr int VL = PK_VL, MR = PK_MR, NR = 2 * PK_VL;
typedef float vf __attribute__((vector_size(4 * PK_VL)));
typedef int32_t vi __attribute__((vector_size(4 * PK_VL)));
typedef float vf_any __attribute__((vector_size(4 * PK_VL), aligned(4), may_alias));

static inline vf load(const float* p) { return *(const vf_any*)p; }
static inline void store(float* p, vf v) { *(vf_any*)p = v; }
static inline vf splat(float x) { return x - vf{}; } // x - 0 is x, also for -0, so it costs nothing
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }

// Sums of lanes. A vector is folded to four lanes by halves, four of those are added crosswise.
typedef float v4 __attribute__((vector_size(16)));
static inline v4 fold(vf v) {
#if defined(__AVX512F__)
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  return (v4)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
  return (v4)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
  return v;
#endif
}
static inline v4 sum4(vf a, vf b, vf c, vf d) {
  typedef int32_t i4 __attribute__((vector_size(16)));
  const i4 low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
  const v4 p = fold(a), q = fold(b), r = fold(c), s = fold(d);
  const v4 pq = __builtin_shuffle(p, q, low) + __builtin_shuffle(p, q, high); // p02 q02 p13 q13
  const v4 rs = __builtin_shuffle(r, s, low) + __builtin_shuffle(r, s, high);
  return __builtin_shuffle(pq, rs, i4{0, 1, 4, 5}) + __builtin_shuffle(pq, rs, i4{2, 3, 6, 7});
}
static inline float sum(vf v) {
  const v4 f = fold(v);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

// e^x, relative error below 2e-7 for |x| <= 87; clamped outside, so never 0 or infinite. NaN stays
// NaN. Cephes' expf: x = n ln 2 + r, a polynomial in r, and n into the exponent bits.
static inline vf vexp(vf x) {
  const vf lo = splat(-87.f), hi = splat(88.f), magic = splat(12582912.f); // 1.5 * 2^23 rounds to integer
  x = x < lo ? lo : x;
  x = x > hi ? hi : x;
  vf n = (x * 1.44269504f + magic) - magic;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  vi e = (__builtin_convertvector(n, vi) + 127) << 23;
  return p * (vf)e;
}

// Calls f(offset, count, full) over n elements: full vectors first, then one partial vector.
// load_part and store_part touch only the first `count` elements.
#if defined(__AVX512F__)
static inline vf load_part(const float* p, int count) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p); }
static inline void store_part(float* p, vf v, int count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
}
#else
static inline vf load_part(const float* p, int count) {
  vf v = {};
  memcpy(&v, p, 4 * size_t(count));
  return v;
}
static inline void store_part(float* p, vf v, int count) { memcpy(p, &v, 4 * size_t(count)); }
#endif

} // namespace PK_ISA
} // namespace pk

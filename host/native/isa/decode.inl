// From stored weights to floats. A reader of one kind of storage decodes STEP neighbouring weights of a row at a
// time, in their order; `Group` holds what the weights of one group share.
//
// Codes of b bits are a little-endian bit stream per row, first weight in the lowest bits (what MLX's quantize
// writes for every b). An affine weight is scale * code + bias, rounded once.

constexpr int STEP = VL < 8 ? 8 : VL, PARTS = STEP / VL;

// ---- half precision
static inline float half_to_float(uint16_t h) {
  uint32_t u = uint32_t(h & 0x7fff) << 13;
  float f;
  memcpy(&f, &u, 4);
  f *= 0x1p112f; // moves the exponent; exact for subnormals too
  memcpy(&u, &f, 4);
  if ((h & 0x7c00) == 0x7c00) u = 0x7f800000u | uint32_t(h & 0x3ff) << 13; // infinity, NaN
  u |= uint32_t(h & 0x8000) << 16;
  memcpy(&f, &u, 4);
  return f;
}
static inline vf load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  vf v;
  for (int i = 0; i < VL; i++) v[i] = half_to_float(p[i]);
  return v;
#endif
}
typedef uint16_t vh __attribute__((vector_size(2 * PK_VL)));
typedef uint32_t vu __attribute__((vector_size(4 * PK_VL)));
static inline vf load_bfloat(const uint16_t* p) {
  vh h;
  memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}

// One scale or bias as a float.
static inline float number(const void* src, Number type, size_t at) {
  if (type == F32) return ((const float*)src)[at];
  if (type == E8M0) { // a power of two
    const uint8_t e = ((const uint8_t*)src)[at];
    const uint32_t u = e ? uint32_t(e) << 23 : 0x400000;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  if (type == E4M3) {
    const uint8_t e = ((const uint8_t*)src)[at];
    return half_to_float(uint16_t((e & 128) << 8 | (e & 127) << 7)) * 256.f;
  }
  const uint16_t h = ((const uint16_t*)src)[at];
#if defined(__AVX2__)
  if (type == F16) return _cvtsh_ss(h);
#else
  if (type == F16) return half_to_float(h);
#endif
  const uint32_t u = uint32_t(h) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// n scales or biases as floats.
static void widen(const void* src, Number type, int n, float* dst) {
  int i = 0;
  if (type == F16 && n >= VL) {
    for (; i + VL <= n; i += VL) store(dst + i, load_half((const uint16_t*)src + i));
    if (i < n) store(dst + n - VL, load_half((const uint16_t*)src + n - VL)), i = n;
  }
  for (; i < n; i++) dst[i] = number(src, type, i);
}

// ---- reading codes, one to each 32-bit lane
// The bits of 8 codes in one word; reads exactly their bytes.
template <int B>
static inline uint64_t eight(const uint8_t* p) {
  uint64_t v = 0;
  uint32_t w = 0;
  uint16_t h = 0;
  switch (B) { // memcpy of an odd size would go through memory byte by byte
    case 3: memcpy(&h, p, 2); return h | uint64_t(p[2]) << 16;
    case 5: memcpy(&w, p, 4); return w | uint64_t(p[4]) << 32;
    case 6: memcpy(&w, p, 4); memcpy(&h, p + 4, 2); return w | uint64_t(h) << 32;
    default: memcpy(&v, p, B); return v;
  }
}

// With bytes to shuffle, every lane picks the two bytes its code lies in, then shifts.
template <int B>
struct Where {
  alignas(64) uint8_t pick[4 * STEP];
  alignas(64) uint32_t shift[STEP];
  Where() {
    for (int i = 0; i < STEP; i++) {
      const int byte = i * B / 8, bit = i * B % 8;
      pick[4 * i] = uint8_t(byte);
      pick[4 * i + 1] = bit + B > 8 ? uint8_t(byte + 1) : 0x80; // 0x80 picks zero
      pick[4 * i + 2] = pick[4 * i + 3] = 0x80;
      shift[i] = uint32_t(bit);
    }
  }
};

// get() leaves bits above the code in place, except those of its last byte: `mask` clears them.
#if defined(__AVX512F__)
template <int B>
struct Codes {
  vi mask = vi{} + ((1 << B) - 1);
  __m512i pick, shift;
  Codes() {
    const Where<B> w;
    pick = _mm512_load_si512(w.pick);
    shift = _mm512_load_si512(w.shift);
  }
  static __m512i bytes(const uint8_t* p) { // those of 16 codes, in each 128-bit lane
    if (B == 2) return _mm512_set1_epi32(int(eight<4>(p) & 0xffffffff));
    if (B == 4) return _mm512_set1_epi64(int64_t(eight<8>(p)));
    return _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(__mmask16((1u << (2 * B)) - 1), p));
  }
  void get(const uint8_t* p, vi* out) const {
    if (B == 8) out[0] = (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    else out[0] = (vi)_mm512_srlv_epi32(_mm512_shuffle_epi8(bytes(p), pick), shift);
  }
};
#elif defined(__AVX2__)
template <int B>
struct Codes {
  vi mask = vi{} + ((1 << B) - 1);
  __m256i pick, shift;
  Codes() {
    const Where<B> w;
    pick = _mm256_load_si256((const __m256i*)w.pick);
    shift = _mm256_load_si256((const __m256i*)w.shift);
  }
  void get(const uint8_t* p, vi* out) const {
    const __m128i v = _mm_cvtsi64_si128(int64_t(eight<B>(p)));
    if (B == 8) out[0] = (vi)_mm256_cvtepu8_epi32(v);
    else out[0] = (vi)_mm256_srlv_epi32(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(v), pick), shift);
  }
};
#else
template <int B>
struct Codes {
  vi mask = vi{} + ((1 << B) - 1);
  void get(const uint8_t* p, vi* out) const {
    const uint64_t v = eight<B>(p);
    for (int j = 0; j < PARTS; j++)
      for (int i = 0; i < VL; i++) out[j][i] = int32_t(v >> ((j * VL + i) * B));
  }
};
#endif

// ---- readers
struct ScaleBias {
  vf scale, bias;
};

template <int B>
struct Affine : Codes<B> {
  static constexpr int bits = B;
  using Group = ScaleBias;
  static Group group(float s, float b) { return {splat(s), splat(b)}; }
  void read(const uint8_t* p, const Group& g, vf* out) const {
    vi c[PARTS] = {};
    this->get(p, c);
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) out[i] = __builtin_convertvector(c[i] & this->mask, vf) * g.scale + g.bias;
  }
};

#if defined(__AVX512F__)
// Codes of at most 4 bits look their weight up in a table of the group.
template <int B>
struct Table : Codes<B> {
  static constexpr int bits = B;
  using Group = vf;
  static Group group(float s, float b) {
    const vf code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return code * s + b;
  }
  void read(const uint8_t* p, const Group& g, vf* out) const { // of an index only the low 4 bits count
    vi c;
    this->get(p, &c);
    out[0] = (vf)_mm512_permutexvar_ps((__m512i)(B == 4 ? c : c & this->mask), (__m512)g);
  }
};
#else
template <int B>
using Table = Affine<B>;
#endif

// ---- small floats
#if defined(__AVX512F__)
struct SmallFloat4 : Codes<4> { // e2m1
  static constexpr int bits = 4;
  using Group = vf;
  static Group group(float s, float) {
    const vf code = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    return code * s;
  }
  void read(const uint8_t* p, const Group& g, vf* out) const {
    vi c;
    get(p, &c);
    out[0] = (vf)_mm512_permutexvar_ps((__m512i)c, (__m512)g);
  }
};
#else
struct SmallFloat4 : Codes<4> {
  static constexpr int bits = 4;
  using Group = vf;
  static Group group(float s, float) { return splat(s); }
  void read(const uint8_t* p, const Group& g, vf* out) const {
    vi c[PARTS] = {};
    get(p, c);
    for (int i = 0; i < PARTS; i++) { // exponent and mantissa straight into a float; 0 and 0.5 are subnormal
      const vi m = c[i] & 7;
      vf v = (vf)(((m >> 1) + 126) << 23 | (m & 1) << 22);
      v = m < 2 ? __builtin_convertvector(m, vf) * 0.5f : v;
      out[i] = (vf)((vi)v | (c[i] & 8) << 28) * g;
    }
  }
};
#endif
struct SmallFloat8 : Codes<8> { // e4m3: 4 exponent bits with bias 7, 3 mantissa bits
  static constexpr int bits = 8;
  using Group = vf;
  static Group group(float s, float) { return splat(s); }
  void read(const uint8_t* p, const Group& g, vf* out) const {
    vi c[PARTS] = {};
    get(p, c);
    for (int i = 0; i < PARTS; i++) {
      const vi e = (c[i] >> 3) & 15, m = c[i] & 7;
      vf v = (vf)((e + 120) << 23 | m << 20);
      v = e == 0 ? __builtin_convertvector(m, vf) * 0.001953125f : v;
      out[i] = (vf)((vi)v | (c[i] & 128) << 24) * g;
    }
  }
};

struct Nothing {};
template <Number T>
struct Float {
  static constexpr int bits = T == F32 ? 32 : 16;
  using Group = Nothing;
  static Group group(float, float) { return {}; }
  void read(const uint8_t* p, const Group&, vf* out) const {
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++)
      out[i] = T == F32 ? load((const float*)p + i * VL)
               : T == F16 ? load_half((const uint16_t*)p + i * VL)
                          : load_bfloat((const uint16_t*)p + i * VL);
  }
  // The first `count` < STEP only, zeros beyond: what lies there may not be ours to read.
  void part(const uint8_t* p, int count, vf* out) const {
    if (T == F32 && PARTS == 1) {
      out[0] = load_part((const float*)p, count);
      return;
    }
    uint8_t rest[STEP * 4] = {};
    memcpy(rest, p, size_t(count) * bits / 8);
    read(rest, {}, out);
  }
};

// Calls f(reader) for the kind of storage.
#define PK_FOR_KIND(kind, f)          \
  switch (kind) {                     \
    case 2: f(Table<2>()); break;     \
    case 3: f(Table<3>()); break;     \
    case 4: f(Table<4>()); break;     \
    case 5: f(Affine<5>()); break;    \
    case 6: f(Affine<6>()); break;    \
    case 8: f(Affine<8>()); break;    \
    case KIND_F32: f(Float<F32>()); break;   \
    case KIND_F16: f(Float<F16>()); break;   \
    case KIND_BF16: f(Float<BF16>()); break; \
    case KIND_MXFP4:                         \
    case KIND_NVFP4: f(SmallFloat4()); break; \
    case KIND_MXFP8: f(SmallFloat8()); break; \
  }

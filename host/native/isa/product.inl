// Products with stored weights on register tiles. For few rows of x a weight is decoded in registers and used at
// once; for many it is decoded into a panel first, which all rows then share.

constexpr int FEW = 16;
constexpr int DOT_ROWS = PK_MR > 6 ? 4 : 2; // rows of W at a time

// ---- x W^T for few rows: a vector holds neighbouring inputs, sums are reduced at the end of a row of W

constexpr size_t AHEAD = 6144; // bytes of W that are asked for before they are read

// The most usual kind has a way of its own: VL bytes hold 2 VL codes of 4 bits, the even ones low, the odd ones high.
// Widened byte by byte no code crosses a lane; x comes with the even inputs of each 2 VL first, then the odd ones.
struct Nibbles {
  static constexpr int bits = 4, step = 2 * VL, parts = 2;
#if defined(__AVX512F__)
  using Group = vf;
  static Group group(float s, float b) { return Table<4>::group(s, b); }
  void read(const uint8_t* p, const Group& g, vf* out) const {
    const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    out[0] = (vf)_mm512_permutexvar_ps(c, (__m512)g); // of an index only the low 4 bits count
    out[1] = (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(c, 4), (__m512)g);
  }
#else
  using Group = ScaleBias;
  static Group group(float s, float b) { return {splat(s), splat(b)}; }
  void read(const uint8_t* p, const Group& g, vf* out) const {
#if defined(__AVX2__)
    const vi c = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    typedef uint8_t vb __attribute__((vector_size(PK_VL)));
    vb bytes;
    memcpy(&bytes, p, sizeof bytes);
    const vi c = __builtin_convertvector(bytes, vi);
#endif
    out[0] = __builtin_convertvector(c & 15, vf) * g.scale + g.bias;
    out[1] = __builtin_convertvector(c >> 4, vf) * g.scale + g.bias;
  }
#endif
};

template <int N>
struct Count {
  static constexpr int n = N;
};

template <class R>
struct InOrder : R {
  static constexpr int step = STEP, parts = PARTS;
};

static void arrange(int kind, const float* x, ptrdiff_t ldx, int M, int K, float* dst) {
  for (int m = 0; m < M; m++, x += ldx, dst += K) {
    if (kind != 4) {
      memcpy(dst, x, sizeof(float) * size_t(K));
      continue;
    }
    vi even, odd;
    for (int i = 0; i < VL; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (int k = 0; k < K; k += 2 * VL) {
      const vf a = load(x + k), b = load(x + k + VL);
      store(dst + k, __builtin_shuffle(a, b, even));
      store(dst + k + VL, __builtin_shuffle(a, b, odd));
    }
  }
}

constexpr int round_up4(int n) { return (n + 3) / 4 * 4; }

// NB rows of W by MB rows of x (ldx apart); scales and biases [NB][groups]. Floats end with `rest` that are no whole step.
template <class R, int NB, int MB>
static void dot_tile(const R& reader, const uint8_t* codes, size_t row, const float* scales, const float* biases,
                     int groups, int group, int rest, const float* x, ptrdiff_t ldx, float* y, ptrdiff_t ldy,
                     bool add) {
  vf acc[NB][MB];
#pragma GCC unroll 8
  for (int j = 0; j < NB; j++)
#pragma GCC unroll 8
    for (int i = 0; i < MB; i++) acc[j][i] = vf{};
  // The rows lie one after the other and are read side by side, which the processor does not foresee: the lines that
  // will be read some 6 KB from here are asked for, as many as are used up.
  const size_t used = size_t(NB) * size_t(group) * R::bits / 8;
  const uint8_t* ahead = codes + NB * row * (1 + AHEAD / (NB * row));
  for (int g = 0; g < groups; g++) {
    if (R::bits <= 8) {
      for (size_t b = 0; b < used; b += 64) __builtin_prefetch(ahead + b, 0, 2);
      ahead += used;
    }
    typename R::Group shared[NB];
#pragma GCC unroll 8
    for (int j = 0; j < NB; j++) shared[j] = R::group(scales[j * groups + g], biases[j * groups + g]);
    for (int k = 0; k < group; k += R::step) {
      vf w[NB][R::parts];
#pragma GCC unroll 8
      for (int j = 0; j < NB; j++) reader.read(codes + j * row, shared[j], w[j]);
#pragma GCC unroll 8
      for (int i = 0; i < MB; i++)
#pragma GCC unroll 2
        for (int p = 0; p < R::parts; p++) {
          const vf v = load(x + i * ldx + p * VL);
#pragma GCC unroll 8
          for (int j = 0; j < NB; j++) acc[j][i] += w[j][p] * v;
        }
      codes += R::step / 8 * R::bits;
      x += R::step;
    }
  }
  if constexpr (R::bits > 8)
    if (rest) {
      vf w[NB][R::parts];
#pragma GCC unroll 8
      for (int j = 0; j < NB; j++) reader.part(codes + j * row, rest, w[j]);
#pragma GCC unroll 8
      for (int i = 0; i < MB; i++)
#pragma GCC unroll 2
        for (int p = 0; p < R::parts; p++) {
          const int left = rest - p * VL;
          const vf v = left >= VL ? load(x + i * ldx + p * VL) : left > 0 ? load_part(x + i * ldx + p * VL, left) : vf{};
#pragma GCC unroll 8
          for (int j = 0; j < NB; j++) acc[j][i] += w[j][p] * v;
        }
    }
  float total[round_up4(NB * MB)];
#pragma GCC unroll 8
  for (int t = 0; t < NB * MB; t += 4) {
    const auto at = [&](int u) { return u < NB * MB ? acc[u % NB][u / NB] : vf{}; };
    const v4 s = sum4(at(t), at(t + 1), at(t + 2), at(t + 3));
    memcpy(total + t, &s, sizeof s);
  }
  for (int i = 0; i < MB; i++)
    for (int j = 0; j < NB; j++) {
      float* to = y + i * ldy + j;
      *to = total[i * NB + j] + (add ? *to : 0.f);
    }
}

// Scales and biases of a few rows as floats; zeros for weights that have none.
struct Widened {
  static constexpr int ROOM = 4096;
  float scales[ROOM], biases[ROOM];
  Widened(const Matrix& w, int n, int rows) {
    if (!w.scales) {
      for (int i = 0; i < rows; i++) scales[i] = biases[i] = 0;
      return;
    }
    const int groups = w.K / w.group;
    const size_t size = w.number == F32 ? 4 : w.number >= E8M0 ? 1 : 2, at = size_t(n) * groups * size;
    const size_t used = size_t(rows) * groups * size, ahead = at + used * (1 + AHEAD / (rows * w.row_bytes()));
    for (size_t b = 0; b < used; b += 64) {
      __builtin_prefetch((const char*)w.scales + ahead + b, 0, 2);
      if (w.biases) __builtin_prefetch((const char*)w.biases + ahead + b, 0, 2);
    }
    widen((const char*)w.scales + at, w.number, rows * groups, scales);
    if (w.biases) widen((const char*)w.biases + at, w.number, rows * groups, biases);
    else memset(biases, 0, sizeof(float) * size_t(rows) * size_t(groups));
  }
};

template <class R, int NB>
static void dot_rows(const R& reader, const Matrix& w, int n, const float* x, int M, float* y, ptrdiff_t ldy, bool add) {
  const size_t row = w.row_bytes();
  const uint8_t* codes = (const uint8_t*)w.codes + size_t(n) * row;
  const Widened shared(w, n, NB);
  const bool affine = R::bits <= 8;
  const int group = affine ? w.group : w.K / R::step * R::step, groups = affine ? w.K / group : group > 0;
  const int rest = affine ? 0 : w.K - group;
  const auto tile = [&](auto rows, int m) {
    dot_tile<R, NB, rows.n>(reader, codes, row, shared.scales, shared.biases, groups, group, rest, x + size_t(m) * w.K, w.K,
                            y + m * ldy + n, ldy, add);
  };
  int m = 0;
  if constexpr (NB == 1) // as many sums as there are registers for
    for (; m + 8 <= M; m += 8) tile(Count<8>(), m);
  for (; m + 4 <= M; m += 4) tile(Count<4>(), m);
  if (m + 2 <= M) tile(Count<2>(), m), m += 2;
  if (m < M) tile(Count<1>(), m);
}

template <class R>
static void dots_of(const R& reader, const Matrix& w, int n0, int n1, const float* x, int M, float* y, ptrdiff_t ldy,
                    bool add) {
  int n = n0;
  const bool room = PK_MR > 6 || M < 8; // registers
  if (room && 4 * (w.K / w.group) <= Widened::ROOM)
    for (; n + DOT_ROWS <= n1; n += DOT_ROWS) dot_rows<R, DOT_ROWS>(reader, w, n, x, M, y, ldy, add);
  for (; n < n1; n++) dot_rows<R, 1>(reader, w, n, x, M, y, ldy, add);
}

static void dots(const Matrix& w, int n0, int n1, const float* x, int M, float* y, ptrdiff_t ldy, bool add) {
  switch (w.kind) {
    case 2: return dots_of(InOrder<Table<2>>(), w, n0, n1, x, M, y, ldy, add);
    case 3: return dots_of(InOrder<Table<3>>(), w, n0, n1, x, M, y, ldy, add);
    case 4: return dots_of(Nibbles(), w, n0, n1, x, M, y, ldy, add);
    case 5: return dots_of(InOrder<Affine<5>>(), w, n0, n1, x, M, y, ldy, add);
    case 6: return dots_of(InOrder<Affine<6>>(), w, n0, n1, x, M, y, ldy, add);
    case 8: return dots_of(InOrder<Affine<8>>(), w, n0, n1, x, M, y, ldy, add);
    case KIND_F32: return dots_of(InOrder<Float<F32>>(), w, n0, n1, x, M, y, ldy, add);
    case KIND_F16: return dots_of(InOrder<Float<F16>>(), w, n0, n1, x, M, y, ldy, add);
    case KIND_BF16: return dots_of(InOrder<Float<BF16>>(), w, n0, n1, x, M, y, ldy, add);
    case KIND_MXFP4:
    case KIND_NVFP4: return dots_of(InOrder<SmallFloat4>(), w, n0, n1, x, M, y, ldy, add);
    case KIND_MXFP8: return dots_of(InOrder<SmallFloat8>(), w, n0, n1, x, M, y, ldy, add);
  }
}

// ---- weights as floats
template <class R>
struct Decoder {
  R reader;
  const Matrix& w;
  const size_t row = w.row_bytes();
  const int groups = w.K / w.group;

  // Weights k0 <= k < k1 of row n; k0 is a multiple of STEP and lies in group g. Writes up to STEP - 1 floats beyond.
  inline void decode(int n, int k0, int g, int k1, float* dst) const {
    const uint8_t* codes = (const uint8_t*)w.codes + size_t(n) * row;
    vf v[PARTS];
    int k = k0;
    if constexpr (R::bits >= 16) {
      for (; k + STEP <= k1; k += STEP, dst += STEP) put(codes + size_t(k) * R::bits / 8, {}, v, dst);
      if (k == k1) return;
      uint8_t rest[STEP * 4] = {}; // what lies beyond the row may not be ours to read
      memcpy(rest, codes + size_t(k) * R::bits / 8, size_t(k1 - k) * R::bits / 8);
      put(rest, {}, v, dst);
    } else {
      for (; k < k1; g++) {
        const int end = (g + 1) * w.group < k1 ? (g + 1) * w.group : k1;
        const size_t at = size_t(n) * groups + g;
        const auto shared = R::group(number(w.scales, w.number, at), w.biases ? number(w.biases, w.number, at) : 0.f);
        for (; k < end; k += STEP, dst += STEP) put(codes + size_t(k) * R::bits / 8, shared, v, dst);
      }
    }
  }

 private:
  inline void put(const uint8_t* codes, const typename R::Group& g, vf* v, float* dst) const {
    reader.read(codes, g, v);
    for (int p = 0; p < PARTS; p++) store(dst + p * VL, v[p]);
  }
};

// Transposes VL x VL floats by exchanging ever smaller blocks: dst[j][i] = src[i][j].
static inline void transpose(const float* src, ptrdiff_t ld, float* dst, ptrdiff_t to) {
  vf r[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; i++) r[i] = load(src + i * ld);
#pragma GCC unroll 4
  for (int d = VL / 2; d; d /= 2) {
    vi low, high;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
      low[i] = i & d ? VL + (i ^ d) : i;
      high[i] = i & d ? VL + i : i ^ d;
    }
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
      if (!(i & d)) {
        const vf a = r[i], b = r[i + d];
        r[i] = __builtin_shuffle(a, b, low);
        r[i + d] = __builtin_shuffle(a, b, high);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < VL; i++) store(dst + i * to, r[i]);
}

template <class R>
static void panel_of_rows_of(const Decoder<R>& d, int n0, int count, int k0, int k1, float* dst) {
  constexpr int ROOM = 256; // inputs decoded at a time: both buffers stay in the first cache
  alignas(64) float part[NR][ROOM + STEP];
  for (int i = count; i < NR; i++) memset(part[i], 0, sizeof part[i]);
  for (int k = k0; k < k1; k += ROOM) {
    const int end = k1 - k < ROOM ? k1 : k + ROOM, n = end - k, g = k / d.w.group;
    for (int i = 0; i < count; i++) d.decode(n0 + i, k, g, end, part[i]);
    int j = 0;
    for (; j + VL <= n; j += VL, dst += VL * NR)
      for (int i = 0; i < NR; i += VL) transpose(&part[i][j], ROOM + STEP, dst + i, NR);
    for (; j < n; j++, dst += NR)
      for (int i = 0; i < NR; i++) dst[i] = part[i][j];
  }
}
static void panel_of_rows(const Matrix& w, int n0, int count, int k0, int k1, float* dst) {
#define PK_CALL(r) panel_of_rows_of(Decoder<decltype(r)>{r, w}, n0, count, k0, k1, dst)
  PK_FOR_KIND(w.kind, PK_CALL)
#undef PK_CALL
}

template <class R>
static void panel_of_columns_of(const Decoder<R>& d, int k0, int count, int n0, int n1, float* dst) {
  const int g = k0 / d.w.group;
  if (count == NR) {
    for (int n = n0; n < n1; n++, dst += NR) d.decode(n, k0, g, k0 + NR, dst);
    return;
  }
  float part[NR + STEP];
  for (int n = n0; n < n1; n++, dst += NR) {
    d.decode(n, k0, g, k0 + count, part);
    memcpy(dst, part, sizeof(float) * size_t(count));
    memset(dst + count, 0, sizeof(float) * size_t(NR - count));
  }
}
static void panel_of_columns(const Matrix& w, int k0, int count, int n0, int n1, float* dst) {
#define PK_CALL(r) panel_of_columns_of(Decoder<decltype(r)>{r, w}, k0, count, n0, n1, dst)
  PK_FOR_KIND(w.kind, PK_CALL)
#undef PK_CALL
}

template <class R>
static void rows_of(const Decoder<R>& d, int n0, int n1, float* dst, ptrdiff_t ld) {
  for (int n = n0; n < n1; n++, dst += ld) d.decode(n, 0, 0, d.w.K, dst);
}
static void rows(const Matrix& w, int n0, int n1, float* dst, ptrdiff_t ld) {
#define PK_CALL(r) rows_of(Decoder<decltype(r)>{r, w}, n0, n1, dst, ld)
  PK_FOR_KIND(w.kind, PK_CALL)
#undef PK_CALL
}

// ---- x W for few rows: a stretch of each row of W is decoded in registers and added to all rows of the result
template <class R, int MB, int STEPS, int T>
static void sum_tile(const Decoder<R>& d, int k0, const float* x, ptrdiff_t ldx, float* y, ptrdiff_t ldy, bool add) {
  const Matrix& w = d.w;
  const int g0 = R::bits <= 8 ? k0 / w.group : 0, group = R::bits <= 8 ? w.group : STEPS * STEP;
  const uint8_t* codes = (const uint8_t*)w.codes + size_t(k0) * R::bits / 8;
  vf acc[MB][STEPS * PARTS];
#pragma GCC unroll 8
  for (int i = 0; i < MB; i++)
#pragma GCC unroll 32
    for (int j = 0; j < STEPS * PARTS; j++) acc[i][j] = vf{};
  for (int n = 0; n < w.N; n++, codes += d.row) {
    typename R::Group shared{};
    size_t at = size_t(n) * d.groups + g0;
    const uint8_t* c = codes;
    for (size_t b = 0; b < size_t(STEPS) * STEP * R::bits / 8; b += 64) __builtin_prefetch(codes + 16 * d.row + b, 0, 2);
#pragma GCC unroll 16
    for (int j = 0; j < STEPS; j++, c += STEP / 8 * R::bits) {
      if constexpr (R::bits <= 8)
        if (j * STEP % group == 0) {
          const Number type = T < 0 ? w.number : Number(T);
          shared = R::group(number(w.scales, type, at), T >= 0 || w.biases ? number(w.biases, type, at) : 0.f);
          at++;
        }
      vf v[PARTS];
      d.reader.read(c, shared, v);
#pragma GCC unroll 2
      for (int p = 0; p < PARTS; p++)
#pragma GCC unroll 8
        for (int i = 0; i < MB; i++) acc[i][j * PARTS + p] += v[p] * x[i * ldx + n];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MB; i++)
#pragma GCC unroll 32
    for (int j = 0; j < STEPS * PARTS; j++) {
      float* q = y + i * ldy + k0 + j * VL;
      store(q, add ? acc[i][j] + load(q) : acc[i][j]);
    }
}

// Columns that are no whole stretch.
template <class R>
static void sum_rest(const Decoder<R>& d, int k0, int count, const float* x, float* y, bool add) {
  constexpr int ROOM = 128;
  float part[ROOM + STEP], total[ROOM] = {};
  const int g = k0 / d.w.group;
  for (int n = 0; n < d.w.N; n++) {
    d.decode(n, k0, g, k0 + count, part);
    for (int j = 0; j < count; j++) total[j] += part[j] * x[n];
  }
  for (int j = 0; j < count; j++) y[k0 + j] = total[j] + (add ? y[k0 + j] : 0.f);
}

template <class R, int T>
static void sums_as(const Decoder<R>& d, int k0, int k1, const float* x, ptrdiff_t ldx, int M, float* y, ptrdiff_t ldy,
                    bool add) {
  // As many sums as there are registers for; stretches of 64 or 128 lie within a group or hold whole ones.
  constexpr int LONG = VL > 4 ? 128 : 64, SHORT = 64, ROWS = PK_MR > 6 && VL > 4 ? 4 : 1;
  for (int m = 0; m < M;) {
    const int rows = M - m >= ROWS ? ROWS : 1;
    const float* xm = x + m * ldx;
    float* ym = y + m * ldy;
    int k = k0;
    if (rows == 1) {
      for (; k + LONG <= k1; k += LONG) sum_tile<R, 1, LONG / STEP, T>(d, k, xm, ldx, ym, ldy, add);
      for (; k + SHORT <= k1; k += SHORT) sum_tile<R, 1, SHORT / STEP, T>(d, k, xm, ldx, ym, ldy, add);
    } else {
      for (; k + SHORT <= k1; k += SHORT) sum_tile<R, ROWS, SHORT / STEP, T>(d, k, xm, ldx, ym, ldy, add);
    }
    if (k < k1)
      for (int i = 0; i < rows; i++) sum_rest(d, k, k1 - k, xm + i * ldx, ym + i * ldy, add);
    m += rows;
  }
}
template <class R>
static void sums_of(const Decoder<R>& d, int k0, int k1, const float* x, ptrdiff_t ldx, int M, float* y, ptrdiff_t ldy,
                    bool add) {
  // The usual type of scales is known when the loop is compiled.
  if constexpr (R::bits <= 8)
    if (d.w.number == F16 && d.w.biases) return sums_as<R, F16>(d, k0, k1, x, ldx, M, y, ldy, add);
  sums_as<R, -1>(d, k0, k1, x, ldx, M, y, ldy, add);
}
static void sums(const Matrix& w, int k0, int k1, const float* x, ptrdiff_t ldx, int M, float* y, ptrdiff_t ldy,
                 bool add) {
#define PK_CALL(r) sums_of(Decoder<decltype(r)>{r, w}, k0, k1, x, ldx, M, y, ldy, add)
  PK_FOR_KIND(w.kind, PK_CALL)
#undef PK_CALL
}

// ---- many rows: a panel of W against rows of x as they lie
template <int M>
static void strip_tile(int K, const float* x, ptrdiff_t ldx, const float* b, float* y, ptrdiff_t ldy, int cols,
                       bool add) {
  vf acc[M][2];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i][0] = acc[i][1] = vf{};
  for (int p = 0; p < K; p++, b += NR) {
    const vf b0 = load(b), b1 = load(b + VL);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const vf a = splat(x[i * ldx + p]);
      acc[i][0] += a * b0;
      acc[i][1] += a * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      float* q = y + i * ldy + j * VL;
      const int left = cols - j * VL;
      if (left >= VL) store(q, add ? acc[i][j] + load(q) : acc[i][j]);
      else if (left > 0) store_part(q, add ? acc[i][j] + load_part(q, left) : acc[i][j], left);
    }
}
typedef void (*StripFn)(int, const float*, ptrdiff_t, const float*, float*, ptrdiff_t, int, bool);
static const StripFn strips[] = {nullptr, strip_tile<1>, strip_tile<2>, strip_tile<3>, strip_tile<4>, strip_tile<5>,
                                 strip_tile<6>,
#if PK_MR > 6
                                 strip_tile<7>, strip_tile<8>, strip_tile<9>, strip_tile<10>, strip_tile<11>,
                                 strip_tile<12>
#endif
};
static void strip(int M, int cols, int K, const float* x, ptrdiff_t ldx, const float* b, float* y, ptrdiff_t ldy,
                  bool add) {
  for (int m = 0; m < M; m += MR)
    strips[M - m < MR ? M - m : MR](K, x + m * ldx, ldx, b, y + m * ldy, ldy, cols, add);
}

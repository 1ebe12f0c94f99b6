// What attention does between its products. In `*_columns` one vector holds the same key's scores for
// VL queries, in `*_rows` one query's scores for VL keys.

// Keys of a block that a column may see: row i is visible to column c when i < visible[c]. Null: all.
static inline vi visible_at(const int32_t* visible, int c) {
  vi v;
  memcpy(&v, visible + c, sizeof v);
  return v;
}

// One block of online softmax: t[n, w] holds scores and becomes exp(score - max); max and sum of each
// column are carried on, and shrink[c] is what earlier results of column c must be multiplied with.
static void softmax_block(float* t, ptrdiff_t ld, int n, int w, const int32_t* visible, float* max, float* sum,
                          float* shrink) {
  const vf none = splat(-__builtin_inff());
  for (int c = 0; c < w; c += VL) {
    vf old = load(max + c), m = old, s = {};
    if (!visible) {
      for (int i = 0; i < n; i++) m = vmax(load(t + i * ld + c), m);
      for (int i = 0; i < n; i++) {
        vf p = vexp(load(t + i * ld + c) - m);
        store(t + i * ld + c, p);
        s += p;
      }
    } else {
      const vi end = visible_at(visible, c);
      vi now = {};
      for (int i = 0; i < n; i++, now += 1) m = vmax(now < end ? load(t + i * ld + c) : none, m);
      now = vi{};
      for (int i = 0; i < n; i++, now += 1) {
        vf p = now < end ? vexp(load(t + i * ld + c) - m) : vf{};
        store(t + i * ld + c, p);
        s += p;
      }
    }
    vf f = vexp(old - m);
    store(max + c, m);
    store(sum + c, load(sum + c) * f + s);
    store(shrink + c, f);
  }
}

// x[r, :] *= by[r]
static void scale_rows(float* x, ptrdiff_t ld, int rows, int n, const float* by) {
  for (int r = 0; r < rows; r++) {
    float* p = x + r * ld;
    int i = 0;
    for (; i + VL <= n; i += VL) store(p + i, load(p + i) * by[r]);
    for (; i < n; i++) p[i] *= by[r];
  }
}

// Backwards, scores and dp = d probability as columns: s becomes p = exp(s - lse), dp becomes p (dp - delta).
static void softmax_grad_columns(float* s, float* dp, ptrdiff_t ld, int n, int w, const int32_t* visible,
                                 const float* lse, const float* delta) {
  for (int c = 0; c < w; c += VL) {
    vf z = load(lse + c), d = load(delta + c);
    vi end = visible ? visible_at(visible, c) : vi{} + n, now = {};
    for (int i = 0; i < n; i++, now += 1) {
      ptrdiff_t at = i * ld + c;
      vf p = now < end ? vexp(load(s + at) - z) : vf{};
      store(s + at, p);
      store(dp + at, p * (load(dp + at) - d));
    }
  }
}

// The same with rows for queries: columns j < visible[row] are seen. w is a multiple of VL.
static void softmax_grad_rows(float* s, float* dp, ptrdiff_t ld, int n, int w, const int32_t* visible, const float* lse,
                              const float* delta) {
  vi lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  for (int r = 0; r < n; r++) {
    vi end = vi{} + (visible ? visible[r] : w);
    for (int c = 0; c < w; c += VL) {
      ptrdiff_t at = r * ld + c;
      vf p = lane + c < end ? vexp(load(s + at) - lse[r]) : vf{};
      store(s + at, p);
      store(dp + at, p * (load(dp + at) - delta[r]));
    }
  }
}

static float dot(const float* a, const float* b, int n) {
  vf s0 = {}, s1 = {};
  int i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + VL) * load(b + i + VL);
  }
  for (; i + VL <= n; i += VL) s0 += load(a + i) * load(b + i);
  if (i < n) s1 += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum(s0 + s1);
}

// ---- few queries over many keys, for decoding
#if defined(__clang__)
#define PK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

// Sums of four vectors: element j of each group of four holds that group's part of sum(a[j]).
static inline vf sums_of_four(const vf* a) {
#if PK_VL == 16
#define PK_LOW(a, b) PK_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define PK_HIGH(a, b) PK_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define PK_LOW2(a, b) PK_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define PK_HIGH2(a, b) PK_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#elif PK_VL == 8
#define PK_LOW(a, b) PK_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define PK_HIGH(a, b) PK_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define PK_LOW2(a, b) PK_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define PK_HIGH2(a, b) PK_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define PK_LOW(a, b) PK_SHUFFLE(a, b, 0, 4, 1, 5)
#define PK_HIGH(a, b) PK_SHUFFLE(a, b, 2, 6, 3, 7)
#define PK_LOW2(a, b) PK_SHUFFLE(a, b, 0, 1, 4, 5)
#define PK_HIGH2(a, b) PK_SHUFFLE(a, b, 2, 3, 6, 7)
#endif
  const vf x = PK_LOW(a[0], a[1]) + PK_HIGH(a[0], a[1]), y = PK_LOW(a[2], a[3]) + PK_HIGH(a[2], a[3]);
  return PK_LOW2(x, y) + PK_HIGH2(x, y);
#undef PK_LOW
#undef PK_HIGH
#undef PK_LOW2
#undef PK_HIGH2
}

// What sums_of_four gave for VL vectors, four at a time: element i becomes the whole sum of vector i.
static inline vf join_fours(const vf* t) {
#if PK_VL == 16
  auto halves = [](vf a, vf b) {
    return PK_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PK_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  const vf x = halves(t[0], t[1]), y = halves(t[2], t[3]);
  return PK_SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         PK_SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif PK_VL == 8
  return PK_SHUFFLE(t[0], t[1], 0, 1, 2, 3, 8, 9, 10, 11) + PK_SHUFFLE(t[0], t[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  return t[0];
#endif
}

// The rows that come next are asked for ahead: the hardware's own look-ahead stops at pages and starts anew at
// each chunk, and half of the bandwidth is lost.
static inline void prefetch(const float* p, int n) {
  for (int c = 0; c < n; c += 16) __builtin_prefetch(p + c);
}

// s[i * ld + j] = q[i] . k[j] for Q queries and n keys; max[i] the largest. Rows of s are written up to a
// multiple of VL.
template <int Q>
static inline void scores(const float* q, const float* k, ptrdiff_t ldk, int n, int d, float* s, ptrdiff_t ld,
                          float* max) {
  vf top[Q];
  for (int i = 0; i < Q; i++) top[i] = splat(-__builtin_inff());
  for (int j = 0; j < n; j += VL) {
    vf t[Q][VL / 4];
    for (int g = 0; g < VL / 4; g++) {
      const float* row[4]; // beyond the end the last key again: the largest score stays what it is
      for (int r = 0; r < 4; r++) row[r] = k + (j + 4 * g + r < n ? j + 4 * g + r : n - 1) * ldk;
      for (int r = 0; r < 4; r++) prefetch(row[r] + 16 * ldk, d);
      vf a[Q][4] = {};
      int c = 0;
      for (; c + VL <= d; c += VL)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
          const vf x = load(row[r] + c);
#pragma GCC unroll 4
          for (int i = 0; i < Q; i++) a[i][r] += x * load(q + i * d + c);
        }
      if (c < d)
        for (int r = 0; r < 4; r++) {
          const vf x = load_part(row[r] + c, d - c);
          for (int i = 0; i < Q; i++) a[i][r] += x * load_part(q + i * d + c, d - c);
        }
      for (int i = 0; i < Q; i++) t[i][g] = sums_of_four(a[i]);
    }
    for (int i = 0; i < Q; i++) {
      const vf x = join_fours(t[i]);
      store(s + i * ld + j, x);
      top[i] = vmax(x, top[i]);
    }
  }
  for (int i = 0; i < Q; i++) {
    float m = top[i][0];
    for (int l = 1; l < VL; l++) m = top[i][l] > m ? top[i][l] : m;
    max[i] = m;
  }
}

// o[i] (columns c to c + C vectors) = sum_j s[i * ld + j] v[j]
template <int Q, int C>
static inline void weigh(const float* s, ptrdiff_t ld, const float* v, ptrdiff_t ldv, int n, float* o, int d) {
  vf a[Q][C] = {};
  for (int j = 0; j < n; j++) {
    vf x[C];
    prefetch(v + (j + 16) * ldv, C * VL);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) x[c] = load(v + j * ldv + c * VL);
#pragma GCC unroll 4
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) a[i][c] += x[c] * s[i * ld + j];
  }
  for (int i = 0; i < Q; i++)
    for (int c = 0; c < C; c++) store(o + i * d + c * VL, a[i][c]);
}

template <int Q>
static inline void attend_some(const float* q, const float* k, ptrdiff_t ldk, const float* v, ptrdiff_t ldv, int n,
                               int d, float* s, float* max, float* total, float* o) {
  const ptrdiff_t ld = (n + VL - 1) / VL * VL;
  scores<Q>(q, k, ldk, n, d, s, ld, max);
  for (int i = 0; i < Q; i++) {
    float* p = s + i * ld;
    vf z = {};
    int j = 0;
    for (; j + VL <= n; j += VL) {
      const vf e = vexp(load(p + j) - max[i]);
      store(p + j, e);
      z += e;
    }
    float t = 0;
    if (j < n) {
      store_part(p + j, vexp(load_part(p + j, n - j) - max[i]), n - j);
      for (; j < n; j++) t += p[j];
    }
    total[i] = sum(z) + t;
  }
  constexpr int C = VL == 8 ? 2 : 4; // accumulators that fit the registers
  int c = 0;
  for (; c + C * VL <= d; c += C * VL) weigh<Q, C>(s, ld, v + c, ldv, n, o + c, d);
  for (; c + VL <= d; c += VL) weigh<Q, 1>(s, ld, v + c, ldv, n, o + c, d);
  if (c < d)
    for (int i = 0; i < Q; i++) {
      vf a = {};
      for (int j = 0; j < n; j++) a += load_part(v + j * ldv + c, d - c) * s[i * ld + j];
      store_part(o + i * d + c, a, d - c);
    }
}

// nq queries q[nq, d] over n > 0 keys: o[i] = sum_j exp(s_ij - max_i) v[j] with s_ij = q[i] . k[j], and total[i]
// the sum of those exp. Keys and values are read once for four queries. `s` holds 4 * (n + 16) floats.
static void attend(const float* q, int nq, const float* k, ptrdiff_t ldk, const float* v, ptrdiff_t ldv, int n, int d,
                   float* s, float* max, float* total, float* o) {
  for (; nq >= 4; nq -= 4, q += 4 * d, o += 4 * d, max += 4, total += 4)
    attend_some<4>(q, k, ldk, v, ldv, n, d, s, max, total, o);
  if (nq == 3) attend_some<3>(q, k, ldk, v, ldv, n, d, s, max, total, o);
  if (nq == 2) attend_some<2>(q, k, ldk, v, ldv, n, d, s, max, total, o);
  if (nq == 1) attend_some<1>(q, k, ldk, v, ldv, n, d, s, max, total, o);
}

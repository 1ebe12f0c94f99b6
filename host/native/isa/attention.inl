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

// One query over n keys, for decoding: o[d] = sum_i exp(s_i - max) v[i], s_i = q . k[i]. `s` holds n floats.
static void attend(const float* q, const float* k, ptrdiff_t ldk, const float* v, ptrdiff_t ldv, int n, int d, float* s,
                   float* max, float* total, float* o) {
  float m = -__builtin_inff();
  for (int i = 0; i < n; i++) {
    s[i] = dot(q, k + i * ldk, d);
    m = s[i] > m ? s[i] : m;
  }
  vf z = {};
  int i = 0;
  for (; i + VL <= n; i += VL) {
    vf p = vexp(load(s + i) - m);
    store(s + i, p);
    z += p;
  }
  float t = 0;
  if (i < n) {
    store_part(s + i, vexp(load_part(s + i, n - i) - m), n - i);
    for (; i < n; i++) t += s[i];
  }
  *max = m;
  *total = sum(z) + t;
  int c = 0;
  for (; c + 4 * VL <= d; c += 4 * VL) {
    vf a[4] = {};
    for (i = 0; i < n; i++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) a[j] += load(v + i * ldv + c + j * VL) * s[i];
    for (int j = 0; j < 4; j++) store(o + c + j * VL, a[j]);
  }
  for (; c < d; c += VL) {
    const int left = d - c < VL ? d - c : VL;
    vf a = {};
    for (i = 0; i < n; i++) a += load_part(v + i * ldv + c, left) * s[i];
    store_part(o + c, a, left);
  }
}

// Softmax statistics along columns: one vector holds VL columns, so nothing is reduced across lanes.

static void column_lse(const float* t, ptrdiff_t ld, int n, int w, float* max, int32_t* top, double* sum) {
  for (int c = 0; c < w; c += VL) {
    vf m = load(t + c);
    vi at = {}, now = {};
    for (int i = 1; i < n; i++) {
      vf x = load(t + i * ld + c);
      now += 1;
      at = x > m ? now : at;
      m = vmax(x, m);
    }
    store(max + c, m);
    memcpy(top + c, &at, sizeof at);
    for (int l = 0; l < VL; l++) sum[c + l] = 0;
    for (int i = 0; i < n; i += 64) {
      int end = n - i < 64 ? n : i + 64;
      vf s = {};
      for (int j = i; j < end; j++) s += vexp(load(t + j * ld + c) - m);
      for (int l = 0; l < VL; l++) sum[c + l] += double(s[l]);
    }
  }
}

static void column_exp(float* t, ptrdiff_t ld, int n, int w, float* max, int32_t* top, double* sum, float* shrink) {
  for (int c = 0; c < w; c += VL) {
    const vf old = load(max + c);
    vf m = old;
    vi at = vi{} - 1, now = {};
    for (int i = 0; i < n; i++, now += 1) {
      const vf x = load(t + i * ld + c);
      at = x > m ? now : at;
      m = vmax(x, m);
    }
    store(max + c, m);
    store(shrink + c, vexp(old - m));
    memcpy(top + c, &at, sizeof at);
    for (int l = 0; l < VL; l++) sum[c + l] = 0;
    for (int i = 0; i < n; i += 64) {
      const int end = n - i < 64 ? n : i + 64;
      vf s = {};
      for (int j = i; j < end; j++) {
        const vf e = vexp(load(t + j * ld + c) - m);
        store(t + j * ld + c, e);
        s += e;
      }
      for (int l = 0; l < VL; l++) sum[c + l] += double(s[l]);
    }
  }
}

static void column_cross(const float* x, const float* y, ptrdiff_t ld, int n, int w, float* max_x, float* max_y,
                         double* sums) {
  for (int c = 0; c < w; c += VL) {
    vf mx = load(x + c), my = load(y + c);
    for (int i = 1; i < n; i++) {
      mx = vmax(load(x + i * ld + c), mx);
      my = vmax(load(y + i * ld + c), my);
    }
    store(max_x + c, mx);
    store(max_y + c, my);
    for (int l = 0; l < VL; l++) sums[c + l] = sums[w + c + l] = sums[2 * w + c + l] = 0;
    for (int i = 0; i < n; i += 64) {
      const int end = n - i < 64 ? n : i + 64;
      vf of_x = {}, of_y = {}, cross = {};
      for (int j = i; j < end; j++) {
        const vf a = load(x + j * ld + c), b = load(y + j * ld + c), e = vexp(a - mx);
        of_x += e;
        of_y += vexp(b - my);
        cross += e * (a - b);
      }
      for (int l = 0; l < VL; l++) {
        sums[c + l] += double(of_x[l]);
        sums[w + c + l] += double(of_y[l]);
        sums[2 * w + c + l] += double(cross[l]);
      }
    }
  }
}

static void row_lse(const float* x, int n, float* max, int32_t* top, double* sum) {
  vf m = splat(-__builtin_inff());
  int i = 0;
  for (; i + VL <= n; i += VL) m = vmax(load(x + i), m);
  float most = m[0];
  for (int l = 1; l < VL; l++) most = m[l] > most ? m[l] : most;
  for (; i < n; i++) most = x[i] > most ? x[i] : most;
  int at = 0;
  while (at < n - 1 && x[at] != most) at++;
  double z = 0;
  for (i = 0; i + VL <= n;) {
    vf s = {};
    for (const int end = n - i < 64 * VL ? n : i + 64 * VL; i + VL <= end; i += VL) s += vexp(load(x + i) - most);
    for (int l = 0; l < VL; l++) z += double(s[l]);
  }
  for (; i < n; i++) z += double(vexp(splat(x[i] - most))[0]);
  *max = most;
  *top = at;
  *sum = z;
}

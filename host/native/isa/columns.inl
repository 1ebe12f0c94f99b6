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

static void column_softmax(float* t, ptrdiff_t ld, int n, int w, const float* lse, const float* ct) {
  for (int c = 0; c < w; c += VL) {
    vf z = load(lse + c), y = load(ct + c);
    for (int i = 0; i < n; i++) store(t + i * ld + c, vexp(load(t + i * ld + c) - z) * y);
  }
}

// Root-mean-square norm and rotary embedding of one row.

// y = x * r * w with r = 1 / sqrt(mean(x^2) + eps)
static inline float rms_scale(const float* x, int n, float eps) {
  return 1.f / __builtin_sqrtf(dot(x, x, n) / float(n) + eps);
}

static void rms_norm(const float* x, const float* w, float* y, int rows, int n, float eps) {
  for (int r = 0; r < rows; r++, x += n, y += n) {
    const float k = rms_scale(x, n, eps);
    int i = 0;
    for (; i + VL <= n; i += VL) store(y + i, load(x + i) * k * load(w + i));
    for (; i < n; i++) y[i] = x[i] * k * w[i];
  }
}

// dx = r w dy - x r^3 mean(x w dy);  dw += sum over rows of dy x r
static void rms_norm_grad(const float* x, const float* w, const float* dy, float* dx, float* dw, int rows, int n,
                          float eps) {
  for (int r = 0; r < rows; r++, x += n, dy += n, dx += n) {
    const float k = rms_scale(x, n, eps);
    vf s = {};
    float rest = 0;
    int i = 0;
    for (; i + VL <= n; i += VL) s += load(x + i) * load(w + i) * load(dy + i);
    for (; i < n; i++) rest += x[i] * w[i] * dy[i];
    const float c = k * k * k * (sum(s) + rest) / float(n);
    for (i = 0; i + VL <= n; i += VL) {
      vf a = load(x + i), g = load(dy + i);
      store(dx + i, g * load(w + i) * k - a * c);
      store(dw + i, load(dw + i) + g * a * k);
    }
    for (; i < n; i++) {
      dx[i] = dy[i] * w[i] * k - x[i] * c;
      dw[i] += dy[i] * x[i] * k;
    }
  }
}

// Rotates `half` pairs: (i, i + half), or neighbours (2i, 2i + 1) when traditional.
static void rope(const float* x, float* y, const float* cos, const float* sin, int half, bool traditional) {
  if (traditional) {
    for (int i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cos[i] - b * sin[i];
      y[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  int i = 0;
  for (; i + VL <= half; i += VL) {
    vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(y + i, a * c - b * s);
    store(y + half + i, a * s + b * c);
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i];
    y[i] = a * cos[i] - b * sin[i];
    y[half + i] = a * sin[i] + b * cos[i];
  }
}

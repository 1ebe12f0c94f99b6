// silu(g) * u and its gradient.

static inline vf sigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }

static void swiglu(const float* g, const float* u, float* y, size_t n) {
  size_t i = 0;
  for (; i + VL <= n; i += VL) {
    vf a = load(g + i);
    store(y + i, a * sigmoid(a) * load(u + i));
  }
  if (int left = int(n - i)) {
    vf a = load_part(g + i, left);
    store_part(y + i, a * sigmoid(a) * load_part(u + i, left), left);
  }
}

// d silu(g) = s + g s (1 - s), with s = sigmoid(g)
static inline void swiglu_grad1(vf g, vf u, vf dy, vf& dg, vf& du) {
  vf s = sigmoid(g), y = g * s;
  du = dy * y;
  dg = dy * u * (s + y * (1.f - s));
}
static void swiglu_grad(const float* g, const float* u, const float* dy, float* dg, float* du, size_t n) {
  size_t i = 0;
  vf a, b;
  for (; i + VL <= n; i += VL) {
    swiglu_grad1(load(g + i), load(u + i), load(dy + i), a, b);
    store(dg + i, a);
    store(du + i, b);
  }
  if (int left = int(n - i)) {
    swiglu_grad1(load_part(g + i, left), load_part(u + i, left), load_part(dy + i, left), a, b);
    store_part(dg + i, a, left);
    store_part(du + i, b, left);
  }
}

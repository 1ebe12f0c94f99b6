// Root-mean-square norm and rotary position embedding. MLX's CPU build composes both of many small
// operations, 20 to 50 us each even for one token.
#include "attention.h"

namespace pk {
namespace {

// ---- rms_norm
int rows_per_task(int n) { return std::max(1, 16384 / std::max(n, 1)); }

// inputs: x [..., D], weight [D], cotangent; outputs: dx, dweight
class RmsNormGrad : public Kernel {
 public:
  RmsNormGrad(mx::Stream s, float eps) : Kernel(s, "rms_norm_grad"), eps_(eps) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto x = dense(in[0], enc), w = dense(in[1], enc), dy = dense(in[2], enc);
    for (auto& o : out) allocate(o, enc);
    const int n = w.shape(0), rows = int(x.size() / size_t(n));
    enc.dispatch([x = x.data<float>(), w = w.data<float>(), dy = dy.data<float>(), dx = out[0].data<float>(),
                  dw = out[1].data<float>(), n, rows, eps = eps_] {
      const int step = rows_per_task(n), tasks = ceil_div(rows, step);
      std::vector<float> part(size_t(tasks) * n, 0.f); // joined in order: no dependence on threads
      parallel(tasks, [&](size_t t) {
        const size_t at = t * step * n;
        simd().rms_norm_grad(x + at, w, dy + at, dx + at, &part[t * n], std::min(step, rows - int(t) * step), n, eps);
      });
      std::fill_n(dw, n, 0.f);
      for (int t = 0; t < tasks; t++)
        for (int i = 0; i < n; i++) dw[i] += part[size_t(t) * n + i];
    });
  }
  bool is_equivalent(const Primitive& o) const override { return static_cast<const RmsNormGrad&>(o).eps_ == eps_; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[0].shape(), in[1].shape()}; }

 private:
  float eps_;
};

class RmsNorm : public Kernel {
 public:
  RmsNorm(mx::Stream s, float eps) : Kernel(s, "rms_norm"), eps_(eps) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto x = dense(in[0], enc), w = dense(in[1], enc);
    allocate(out[0], enc);
    const int n = w.shape(0), rows = int(x.size() / size_t(n));
    enc.dispatch([x = x.data<float>(), w = w.data<float>(), y = out[0].data<float>(), n, rows, eps = eps_] {
      const int step = rows_per_task(n);
      parallel(ceil_div(rows, step), [&](size_t t) {
        const size_t at = t * step * n;
        simd().rms_norm(x + at, w, y + at, std::min(step, rows - int(t) * step), n, eps);
      });
    });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    auto d = mx::array::make_arrays({p[0].shape(), p[1].shape()}, {mx::float32, mx::float32},
                                    std::make_shared<RmsNormGrad>(stream(), eps_), {p[0], p[1], ct[0]});
    std::vector<mx::array> r;
    for (int n : argnums) r.push_back(d[n]);
    return r;
  }
  bool is_equivalent(const Primitive& o) const override { return static_cast<const RmsNorm&>(o).eps_ == eps_; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[0].shape()}; }

 private:
  float eps_;
};

// ---- rope
struct Rotation {
  int dims, offset;
  bool traditional, back;
  bool operator==(const Rotation&) const = default;
};

// inputs: x [B, H, L, D], freqs [dims / 2]
class Rope : public Kernel {
 public:
  Rope(mx::Stream s, Rotation r) : Kernel(s, "rope"), r_(r) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto x = unit_stride(in[0], enc), f = dense(in[1], enc);
    allocate_blhd(out[0], enc);
    if (out[0].size() == 0) return;
    enc.dispatch([r = r_, x = heads(x), y = out_heads(out[0]), f = f.data<float>(), B = x.shape(0), H = x.shape(1), L = x.shape(2),
                  D = x.shape(3)] { run(r, x, y, f, B, H, L, D); });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    std::vector<mx::array> r;
    for (int n : argnums) {
      if (n != 0) fail("is differentiable in `x` only");
      Rotation back = r_;
      back.back = !back.back; // the transpose of a rotation turns the other way
      auto in = p;
      in[0] = ct[0];
      r.push_back(mx::array(p[0].shape(), mx::float32, std::make_shared<Rope>(stream(), back), in));
    }
    return r;
  }
  bool is_equivalent(const Primitive& o) const override { return static_cast<const Rope&>(o).r_ == r_; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[0].shape()}; }

 private:
  static void run(const Rotation& r, const Heads& x, const OutHeads& y, const float* freqs, int B, int H, int L, int D) {
    const int half = r.dims / 2, step = std::max(1, 16384 / (B * H * D));
    std::vector<float> turn(half); // radians per position
    for (int i = 0; i < half; i++) turn[i] = 1.f / freqs[i];
    parallel(ceil_div(L, step), [&](size_t t) {
      float *cos = scratch(0, 2 * size_t(half)), *sin = cos + half;
      for (int l = int(t) * step; l < std::min(L, int(t + 1) * step); l++) {
        const float position = float(r.offset + l);
        for (int i = 0; i < half; i++) {
          const float angle = position * turn[i];
          cos[i] = std::cos(angle);
          sin[i] = r.back ? -std::sin(angle) : std::sin(angle);
        }
        for (int b = 0; b < B; b++)
          for (int h = 0; h < H; h++) {
            const float* p = x.at(b, h, l);
            float* q = y.at(b, h, l);
            simd().rope(p, q, cos, sin, half, r.traditional);
            std::copy_n(p + r.dims, D - r.dims, q + r.dims);
          }
      }
    });
  }
  Rotation r_;
};

} // namespace
} // namespace pk

extern "C" int pk_rms_norm(mlx_array* res, mlx_array x_, mlx_array w_, float eps, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto x = f32(get(x_), s), w = f32(get(w_), s);
    PK_REQUIRE(x.ndim() >= 1 && w.ndim() == 1 && w.shape(0) > 0 && x.shape(-1) == w.shape(0), "rms_norm: x ", text(x),
            " must be [..., D] and weight ", text(w), " [D]");
    put(res, mx::array(x.shape(), mx::float32, std::make_shared<RmsNorm>(s, eps), {x, w}));
  });
}

extern "C" int pk_rope(mlx_array* res, mlx_array x_, int dims, bool traditional, int offset, mlx_array freqs_,
                       mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto x = f32(get(x_), s), f = f32(get(freqs_), s);
    PK_REQUIRE(x.ndim() == 4, "rope: x ", text(x), " must be [B, H, L, D]");
    PK_REQUIRE(dims > 0 && dims % 2 == 0 && dims <= x.shape(3), "rope: dims ", dims, " must be even and at most D of x ",
            text(x));
    PK_REQUIRE(f.ndim() == 1 && f.shape(0) == dims / 2, "rope: freqs ", text(f), " must be [dims / 2] with dims ", dims);
    put(res, mx::array(x.shape(), mx::float32, std::make_shared<Rope>(s, Rotation{dims, offset, traditional, false}),
                       {x, f}));
  });
}

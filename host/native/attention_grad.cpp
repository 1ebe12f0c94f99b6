// Gradient of attention, by blocks, from the saved log-sum-exp. With P = softmax, dP = dO v^T and
// delta = rowsum(dO * O):  dS = P * (dP - delta),  dq = scale dS k,  dk = scale dS^T q,  dv = P^T dO.
//
// Two passes over the blocks, each recomputing the scores in the orientation its products want: one task
// a block of queries for dq, one task a block of keys for dk and dv. So every task owns what it writes
// and the result does not depend on the number of threads.
#include "attention.h"

namespace pk {
namespace {

struct Problem {
  AttentionShape a;
  Heads q, k, v, o, dy;
  const float* lse; // [B, H, Lq]
  OutHeads dq, dk, dv;

  int group() const { return a.H / a.Hkv; }
  size_t row(int b, int h, int l) const { return (size_t(b) * a.H + h) * a.Lq + l; }
};

// First block of keys that not every query from q0 on sees in full.
bool all_visible(const AttentionShape& a, int q0, int k_end) { return k_end <= a.visible(q0); }

void grad_queries(const Problem& p, const float* delta) {
  const Simd& f = simd();
  const AttentionShape& a = p.a;
  const int D = a.D, blocks = ceil_div(a.Lq, BLOCK), padded = round_up(a.Lk, BLOCK);
  Scratch keys(size_t(a.B) * a.Hkv * padded * D), values(size_t(a.B) * a.Hkv * padded * D);
  pack_heads(a, p.k, a.Hkv, a.Lk, f.mr, 1.f, keys.get(0));
  pack_heads(a, p.v, a.Hkv, a.Lk, f.mr, 1.f, values.get(0));
  parallel(size_t(a.B) * a.H * blocks, [&](size_t task) {
    const int q0 = (blocks - 1 - int(task % blocks)) * BLOCK, bh = int(task / blocks), b = bh / a.H, h = bh % a.H;
    const int kv = h / p.group(), rows = std::min(BLOCK, a.Lq - q0), width = round_up(rows, f.nr);
    float *qt = scratch(0, size_t(BLOCK) * D), *dyt = scratch(1, size_t(BLOCK) * D);
    float *s = scratch(2, BLOCK * BLOCK), *dp = scratch(3, BLOCK * BLOCK), *acc = scratch(4, size_t(BLOCK) * D);
    float *z = scratch(5, 2 * BLOCK), *d = z + BLOCK;
    int32_t visible[BLOCK];
    f.pack(p.q.at(b, h, q0), p.q.l, p.q.d, rows, D, f.nr, a.scale, qt);
    f.pack(p.dy.at(b, h, q0), p.dy.l, p.dy.d, rows, D, f.nr, 1.f, dyt);
    for (int i = 0; i < BLOCK; i++) {
      z[i] = i < rows ? p.lse[p.row(b, h, q0 + i)] : 0;
      d[i] = i < rows ? delta[p.row(b, h, q0 + i)] : 0;
    }
    const size_t head = (size_t(b) * a.Hkv + kv) * padded * D;
    const int end = a.visible(q0 + rows - 1);
    const Panels qp{qt, f.nr, ptrdiff_t(D) * f.nr}, dyp{dyt, f.nr, ptrdiff_t(D) * f.nr};
    for (int k0 = 0; k0 < end; k0 += BLOCK) {
      const int n = std::min(BLOCK, end - k0);
      const size_t at = head + size_t(k0) * D;
      for (int i = 0; i < width; i++) visible[i] = a.visible(q0 + i) - k0;
      f.gemm(n, width, D, {keys.get(0) + at, f.mr, ptrdiff_t(D) * f.mr}, qp, true, s, width, false);
      f.gemm(n, width, D, {values.get(0) + at, f.mr, ptrdiff_t(D) * f.mr}, dyp, true, dp, width, false);
      f.softmax_grad_columns(s, dp, width, n, width, all_visible(a, q0, k0 + n) ? nullptr : visible, z, d);
      f.gemm(rows, D, n, {dp, width, f.mr}, {p.k.at(b, kv, k0), p.k.l, f.nr}, false, acc, D, k0 > 0);
    }
    for (int r = 0; r < rows; r++) {
      float* y = p.dq.at(b, h, q0 + r);
      for (int i = 0; i < D; i++) y[i] = acc[size_t(r) * D + i] * a.scale;
    }
  });
}

void grad_keys(const Problem& p, const float* delta) {
  const Simd& f = simd();
  const AttentionShape& a = p.a;
  const int D = a.D, blocks = ceil_div(a.Lk, BLOCK), padded = round_up(a.Lq, BLOCK);
  Scratch queries(size_t(a.B) * a.H * padded * D), dys(size_t(a.B) * a.H * padded * D);
  pack_heads(a, p.q, a.H, a.Lq, f.mr, a.scale, queries.get(0));
  pack_heads(a, p.dy, a.H, a.Lq, f.mr, 1.f, dys.get(0));
  parallel(size_t(a.B) * a.Hkv * blocks, [&](size_t task) { // the first keys are seen by most queries
    const int k0 = int(task % blocks) * BLOCK, bk = int(task / blocks), b = bk / a.Hkv, kv = bk % a.Hkv;
    const int keys = std::min(BLOCK, a.Lk - k0), width = round_up(keys, f.nr);
    float *kt = scratch(0, size_t(BLOCK) * D), *vt = scratch(1, size_t(BLOCK) * D);
    float *s = scratch(2, BLOCK * BLOCK), *dp = scratch(3, BLOCK * BLOCK);
    float *dk = scratch(4, 2 * size_t(BLOCK) * D), *dv = dk + size_t(BLOCK) * D;
    int32_t visible[BLOCK];
    f.pack(p.k.at(b, kv, k0), p.k.l, p.k.d, keys, D, f.nr, 1.f, kt);
    f.pack(p.v.at(b, kv, k0), p.v.l, p.v.d, keys, D, f.nr, 1.f, vt);
    const Panels kp{kt, f.nr, ptrdiff_t(D) * f.nr}, vp{vt, f.nr, ptrdiff_t(D) * f.nr};
    std::fill_n(dk, 2 * size_t(BLOCK) * D, 0.f);
    for (int h = kv * p.group(); h < (kv + 1) * p.group(); h++)
      for (int q0 = 0; q0 < a.Lq; q0 += BLOCK) {
        const int rows = std::min(BLOCK, a.Lq - q0);
        if (a.visible(q0 + rows - 1) <= k0) continue; // above the diagonal
        const size_t at = (size_t(b) * a.H + h) * padded * D + size_t(q0) * D, row = p.row(b, h, q0);
        for (int i = 0; i < rows; i++) visible[i] = std::min(keys, a.visible(q0 + i) - k0);
        f.gemm(rows, width, D, {queries.get(0) + at, f.mr, ptrdiff_t(D) * f.mr}, kp, true, s, width, false);
        f.gemm(rows, width, D, {dys.get(0) + at, f.mr, ptrdiff_t(D) * f.mr}, vp, true, dp, width, false);
        f.softmax_grad_rows(s, dp, width, rows, width, visible, p.lse + row, delta + row);
        f.gemm(keys, D, rows, {s, width, f.mr}, {p.dy.at(b, h, q0), p.dy.l, f.nr}, false, dv, D, true);
        f.gemm(keys, D, rows, {dp, width, f.mr}, {p.q.at(b, h, q0), p.q.l, f.nr}, false, dk, D, true);
      }
    for (int r = 0; r < keys; r++) {
      float* y = p.dk.at(b, kv, k0 + r);
      for (int i = 0; i < D; i++) y[i] = dk[size_t(r) * D + i] * a.scale;
      memcpy(p.dv.at(b, kv, k0 + r), dv + size_t(r) * D, sizeof(float) * size_t(D));
    }
  });
}

void gradients(const Problem& p) {
  const AttentionShape& a = p.a;
  Scratch delta(size_t(a.B) * a.H * a.Lq);
  parallel(size_t(a.B) * a.H, [&](size_t bh) {
    for (int l = 0; l < a.Lq; l++)
      delta.get(0)[bh * a.Lq + l] =
          simd().dot(p.o.at(int(bh) / a.H, int(bh) % a.H, l), p.dy.at(int(bh) / a.H, int(bh) % a.H, l), a.D);
  });
  grad_queries(p, delta.get(0));
  grad_keys(p, delta.get(0));
}

// inputs: q, k, v, result, log-sum-exp, cotangent; outputs: dq, dk, dv
class AttentionGrad : public Kernel {
 public:
  AttentionGrad(mx::Stream s, float scale, bool causal) : Kernel(s, "attention_grad"), scale_(scale), causal_(causal) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    for (auto& o : out) allocate_blhd(o, enc);
    auto q = unit_stride(in[0], enc), k = unit_stride(in[1], enc), v = unit_stride(in[2], enc);
    auto o = unit_stride(in[3], enc), lse = dense(in[4], enc), dy = unit_stride(in[5], enc);
    Problem p{AttentionShape(q, k, scale_, causal_), heads(q), heads(k), heads(v), heads(o), heads(dy),
              lse.data<float>(), out_heads(out[0]), out_heads(out[1]), out_heads(out[2])};
    enc.dispatch([p] { gradients(p); });
  }
  bool is_equivalent(const Primitive& o) const override {
    auto& a = static_cast<const AttentionGrad&>(o);
    return a.scale_ == scale_ && a.causal_ == causal_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    return {in[0].shape(), in[1].shape(), in[2].shape()};
  }

 private:
  float scale_;
  bool causal_;
};

} // namespace

std::vector<mx::array> attention_grad(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& out,
                                      const mx::array& lse, const mx::array& ct, float scale, bool causal,
                                      mx::Stream s) {
  return mx::array::make_arrays({q.shape(), k.shape(), v.shape()}, {mx::float32, mx::float32, mx::float32},
                                std::make_shared<AttentionGrad>(s, scale, causal), {q, k, v, out, lse, ct});
}

} // namespace pk

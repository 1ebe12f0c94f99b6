// Attention in blocks (flash attention): scores of 96 queries and 96 keys at a time, softmax carried along,
// blocks above the causal diagonal skipped. Scores are kept with queries along the vector, so that the
// softmax needs no horizontal reductions and the probabilities are the layout the second product wants.
//
// q, k and v may be strided views (a transposed [B, L, H, D]); results lie in memory as [B, L, H, D], so
// that the usual transpose and reshape after attention copies nothing.
#include <cmath>

#include "attention.h"

namespace pk {

void attend_in_blocks(const AttentionShape& a, const Heads& q, const Heads& k, const Heads& v, const OutHeads& o,
                      float* lse) {
  const Simd& f = simd();
  const int D = a.D, padded = round_up(a.Lk, BLOCK);
  Scratch keys(size_t(a.B) * a.Hkv * padded * D);
  pack_heads(a, k, a.Hkv, a.Lk, f.mr, 1.f, keys.get(0));
  const int blocks = ceil_div(a.Lq, BLOCK);
  parallel(size_t(a.B) * a.H * blocks, [&](size_t task) {
    const int qb = blocks - 1 - int(task % blocks), bh = int(task / blocks); // the longest tasks first
    const int b = bh / a.H, h = bh % a.H, kv = h / (a.H / a.Hkv);
    const int q0 = qb * BLOCK, rows = std::min(BLOCK, a.Lq - q0), width = round_up(rows, f.nr);
    float* qt = scratch(0, size_t(BLOCK) * D);
    float* t = scratch(1, size_t(BLOCK) * BLOCK);
    float* acc = scratch(2, size_t(BLOCK) * D);
    float *max = scratch(3, 3 * BLOCK), *sum = max + BLOCK, *shrink = sum + BLOCK;
    f.pack(q.at(b, h, q0), q.l, q.d, rows, D, f.nr, a.scale, qt);
    std::fill_n(max, BLOCK, -INFINITY);
    std::fill_n(sum, BLOCK, 0.f);
    const float* packed = keys.get(0) + (size_t(b) * a.Hkv + kv) * padded * D;
    const int end = a.visible(q0 + rows - 1);
    for (int k0 = 0; k0 < end; k0 += BLOCK) {
      const int n = std::min(BLOCK, end - k0);
      Panels kp{packed + size_t(k0) * D, f.mr, ptrdiff_t(D) * f.mr};
      Panels vp{v.at(b, kv, k0), v.l, f.nr};
      if (k0 + n <= a.visible(q0)) {
        f.gemm(n, width, D, kp, {qt, f.nr, ptrdiff_t(D) * f.nr}, true, t, width, false);
        f.softmax_block(t, width, n, width, nullptr, max, sum, shrink);
        if (k0) f.scale_rows(acc, D, rows, D, shrink);
        f.gemm(rows, D, n, {t, width, f.mr}, vp, false, acc, D, k0 > 0);
        continue;
      }
      // on the diagonal: a panel of queries at a time, each with the keys it sees
      for (int c = 0; c < rows; c += f.nr) {
        const int count = std::min(f.nr, rows - c), m = std::min(n, a.visible(q0 + c + count - 1) - k0);
        if (m <= 0) continue;
        int32_t visible[64];
        for (int i = 0; i < f.nr; i++) visible[i] = a.visible(q0 + c + i) - k0;
        f.gemm(m, f.nr, D, kp, {qt + size_t(c) * D, f.nr, 0}, true, t, f.nr, false);
        f.softmax_block(t, f.nr, m, f.nr, visible, max + c, sum + c, shrink + c);
        if (k0) f.scale_rows(acc + size_t(c) * D, D, count, D, shrink + c);
        f.gemm(count, D, m, {t, f.nr, f.mr}, vp, false, acc + size_t(c) * D, D, k0 > 0);
      }
    }
    for (int r = 0; r < rows; r++) {
      lse[(size_t(b) * a.H + h) * a.Lq + q0 + r] = max[r] + std::log(sum[r]);
      shrink[r] = 1.f / sum[r];
    }
    f.scale_rows(acc, D, rows, D, shrink);
    for (int r = 0; r < rows; r++) memcpy(o.at(b, h, q0 + r), acc + size_t(r) * D, sizeof(float) * size_t(D));
  });
}

namespace {

constexpr int KEY_CHUNK = 512; // keys a thread takes when decoding

// Few queries over many keys: each task takes one key head, one chunk of keys, and all queries of its group.
void decode(const AttentionShape& a, const Heads& q, const Heads& k, const Heads& v, const OutHeads& o, float* lse) {
  const Simd& f = simd();
  const int D = a.D, group = a.H / a.Hkv, queries = group * a.Lq;
  const int chunks = ceil_div(a.Lk, KEY_CHUNK), parts = a.B * a.Hkv * chunks;
  // of each part and query: result [D], largest score, sum
  Scratch results(size_t(parts) * queries * (D + 2));
  float *partial = results.get(0), *max = partial + size_t(parts) * queries * D, *sum = max + size_t(parts) * queries;
  auto task = [&](size_t p) {
    const int c = int(p % chunks), bk = int(p / chunks), b = bk / a.Hkv, kv = bk % a.Hkv, k0 = c * KEY_CHUNK;
    float *s = scratch(0, 4 * (KEY_CHUNK + 16)), *rows = scratch(1, size_t(group) * D);
    for (int l = 0; l < a.Lq; l++) {
      const size_t at = p * queries + size_t(l) * group;
      const int n = std::min(KEY_CHUNK, a.visible(l) - k0);
      std::fill_n(max + at, group, -INFINITY);
      std::fill_n(sum + at, group, 0.f);
      if (n <= 0) continue;
      for (int i = 0; i < group; i++) {
        const float* x = q.at(b, kv * group + i, l);
        for (int d = 0; d < D; d++) rows[i * D + d] = x[d * q.d] * a.scale;
      }
      f.attend(rows, group, k.at(b, kv, k0), k.l, v.at(b, kv, k0), v.l, n, D, s, max + at, sum + at, partial + at * D);
    }
  };
  if (int64_t(a.Lk) * D * queries * a.B * a.Hkv < 60000) // some 5 us of work: waking a thread costs as much
    for (int p = 0; p < parts; p++) task(p);
  else parallel(parts, task);

  for (int i = 0; i < a.B * a.H * a.Lq; i++) { // join the chunks
    const int l = i % a.Lq, h = i / a.Lq % a.H, b = i / a.Lq / a.H, kv = h / group;
    const size_t first = (size_t(b) * a.Hkv + kv) * chunks, query = size_t(l) * group + h % group;
    float top = -INFINITY, total = 0;
    for (int c = 0; c < chunks; c++) top = std::max(top, max[(first + c) * queries + query]);
    float* y = o.at(b, h, l);
    std::fill_n(y, D, 0.f);
    for (int c = 0; c < chunks; c++) {
      const size_t at = (first + c) * queries + query;
      if (sum[at] == 0) continue;
      const float w = std::exp(max[at] - top), *x = partial + at * D;
      total += w * sum[at];
      for (int d = 0; d < D; d++) y[d] += w * x[d];
    }
    for (int d = 0; d < D; d++) y[d] /= total;
    lse[i] = top + std::log(total);
  }
}

// inputs: q, k, v; outputs: result, log of the sum of exp of each query's scores
class Attention : public Kernel {
 public:
  Attention(mx::Stream s, float scale, bool causal) : Kernel(s, "attention"), scale_(scale), causal_(causal) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto q = in[0], k = unit_stride(in[1], enc), v = unit_stride(in[2], enc);
    enc.set_input_array(q);
    allocate_blhd(out[0], enc);
    allocate(out[1], enc);
    AttentionShape a(q, k, scale_, causal_);
    if (out[0].size() == 0) return;
    enc.dispatch([a, q = heads(q), k = heads(k), v = heads(v), o = out_heads(out[0]), lse = out[1].data<float>()] {
      a.Lq <= 8 ? decode(a, q, k, v, o, lse) : attend_in_blocks(a, q, k, v, o, lse);
    });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>& out) override {
    auto d = attention_grad(p[0], p[1], p[2], out[0], out[1], ct[0], scale_, causal_, stream());
    std::vector<mx::array> r;
    for (int n : argnums) r.push_back(d[n]);
    return r;
  }
  bool is_equivalent(const Primitive& o) const override {
    auto& a = static_cast<const Attention&>(o);
    return a.scale_ == scale_ && a.causal_ == causal_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    auto& s = in[0].shape();
    return {s, {s[0], s[1], s[2]}};
  }

 private:
  float scale_;
  bool causal_;
};

} // namespace

// ---- shared with the gradient
mx::array unit_stride(const mx::array& a, mx::cpu::CommandEncoder& enc) {
  enc.set_input_array(a);
  return a.strides(3) == 1 || a.shape(3) == 1 ? a : dense(a, enc);
}

void allocate_blhd(mx::array& out, mx::cpu::CommandEncoder& enc) {
  const int64_t H = out.shape(1), L = out.shape(2), D = out.shape(3);
  mx::array::Flags flags{true, L <= 1 || H <= 1, out.size() <= 1};
  out.set_data(mx::allocator::malloc(out.nbytes()), out.size(), mx::Strides{L * H * D, D, H * D, 1}, flags);
  enc.set_output_array(out);
}

void pack_heads(const AttentionShape& a, const Heads& x, int H, int L, int w, float scale, float* dst) {
  const int blocks = ceil_div(L, BLOCK);
  parallel(size_t(a.B) * H * blocks, [&](size_t task) {
    const int l0 = int(task % blocks) * BLOCK, bh = int(task / blocks);
    simd().pack(x.at(bh / H, bh % H, l0), x.l, x.d, std::min(BLOCK, L - l0), a.D, w, scale,
                dst + task * BLOCK * a.D);
  });
}

} // namespace pk

extern "C" int pk_attention(mlx_array* res, mlx_array q_, mlx_array k_, mlx_array v_, float scale, bool causal,
                            mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto q = f32(get(q_), s), k = f32(get(k_), s), v = f32(get(v_), s);
    PK_REQUIRE(q.ndim() == 4 && k.ndim() == 4 && k.shape() == v.shape() && q.shape(0) == k.shape(0) &&
                q.shape(3) == k.shape(3) && k.shape(1) > 0 && q.shape(1) % k.shape(1) == 0,
            "attention: q ", text(q), " must be [B, H, Lq, D] and k ", text(k), ", v ", text(v),
            " [B, Hkv, Lk, D] with Hkv dividing H");
    PK_REQUIRE(k.shape(2) > 0 && k.shape(3) > 0, "attention: k ", text(k), " is empty");
    PK_REQUIRE(!causal || q.shape(2) <= k.shape(2), "attention: causal q ", text(q), " has more positions than k ", text(k));
    put(res, mx::array::make_arrays({q.shape(), {q.shape(0), q.shape(1), q.shape(2)}}, {mx::float32, mx::float32},
                                    std::make_shared<Attention>(s, scale, causal), {q, k, v})[0]);
  });
}

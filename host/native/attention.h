// Shapes and layouts that attention and its gradient share.
#pragma once
#include "plastic.h"

namespace pk {

constexpr int BLOCK = 96; // queries and keys of a block: a multiple of every table's mr and nr

// A [B, heads, L, D] tensor with any strides (in elements).
template <class T>
struct HeadsOf {
  T* data;
  int64_t b, h, l, d;
  T* at(int bi, int hi, int li) const { return data + bi * b + hi * h + li * l; }
};
using Heads = HeadsOf<const float>;
using OutHeads = HeadsOf<float>;
inline Heads heads(const mx::array& a) {
  return {a.data<float>(), a.strides(0), a.strides(1), a.strides(2), a.strides(3)};
}
inline OutHeads out_heads(mx::array& a) {
  return {a.data<float>(), a.strides(0), a.strides(1), a.strides(2), a.strides(3)};
}

struct AttentionShape {
  int B, H, Hkv, Lq, Lk, D;
  float scale;
  bool causal;
  AttentionShape(const mx::array& q, const mx::array& k, float s, bool c)
      : B(q.shape(0)), H(q.shape(1)), Hkv(k.shape(1)), Lq(q.shape(2)), Lk(k.shape(2)), D(q.shape(3)), scale(s),
        causal(c) {}
  AttentionShape(int b, int h, int hkv, int lq, int lk, int d, float s, bool c)
      : B(b), H(h), Hkv(hkv), Lq(lq), Lk(lk), D(d), scale(s), causal(c) {}
  // Number of keys that query l sees: the last query sees all.
  int visible(int l) const { return causal ? Lk - Lq + l + 1 : Lk; }
};

// The input itself, or a row-contiguous copy when its last axis is strided.
mx::array unit_stride(const mx::array& a, mx::cpu::CommandEncoder& enc);
// Allocates [B, H, L, D] whose memory is ordered [B, L, H, D].
void allocate_blhd(mx::array& out, mx::cpu::CommandEncoder& enc);
// Every head of x, times scale, as panels of w rows. Heads start round_up(L, BLOCK) * D apart.
void pack_heads(const AttentionShape& a, const Heads& x, int H, int L, int w, float scale, float* dst);
// Blocked attention, for many queries; lse [B, H, Lq] gets the log of the sum of exp of each query's scores.
void attend_in_blocks(const AttentionShape& a, const Heads& q, const Heads& k, const Heads& v, const OutHeads& o,
                      float* lse);
// Lazy gradients of q, k, v from the result, its log-sum-exp and its cotangent.
std::vector<mx::array> attention_grad(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& out,
                                      const mx::array& lse, const mx::array& ct, float scale, bool causal,
                                      mx::Stream s);

} // namespace pk

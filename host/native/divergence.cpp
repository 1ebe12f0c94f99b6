// Kullback-Leibler divergence between the next-token distributions of two hidden states under one head.
//
// Logits x and y are linear in the hidden states: with m = sum over v of p[v] head[v], the mean of the head under p,
//   KL(p | q) = sum p (x - y) + lse_q - lse_p = (h_p - h_q) . m_p + lse_q - lse_p,
// and its gradient in h_q is m_q - m_p. So where the gradient is wanted the divergence comes for nothing, to the
// rounding of logits (some 1e-6 nats). Alone it is found from both logits side by side, where that cancels.
#include "head.h"

namespace pk {
namespace {

// inputs: reference, of, head; outputs: kl [N], and with `gradient` d kl / d of [N, D]
class Divergence : public Kernel {
 public:
  Divergence(mx::Stream s, MatrixLayout l, bool gradient) : Kernel(s, "divergence"), l_(l), gradient_(gradient) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    const auto x = dense(in[0], enc), y = dense(in[1], enc);
    const Matrix w = prepare_head(l_, &in[2], enc);
    for (auto& o : out) allocate(o, enc);
    enc.dispatch([p = HeadProblem{x.data<float>(), x.shape(0), w}, q = HeadProblem{y.data<float>(), x.shape(0), w},
                  kl = out[0].data<float>(), d = gradient_ ? out[1].data<float>() : nullptr] {
      by_blocks(p, [&](const HeadProblem& part, int first) {
        const HeadProblem other = q.part(first, part.N);
        if (d) learn(part, other, kl + first, d + size_t(first) * size_t(p.D()));
        else divergences(part, other, kl + first);
      });
    });
  }
  bool is_equivalent(const Primitive& o) const override {
    auto& t = static_cast<const Divergence&>(o);
    return t.l_ == l_ && t.gradient_ == gradient_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    if (gradient_) return {{in[0].shape(0)}, in[0].shape()};
    return {{in[0].shape(0)}};
  }

 private:
  static void learn(const HeadProblem& p, const HeadProblem& q, float* kl, float* gradient) {
    const size_t D = size_t(p.D()), rows = size_t(p.N);
    Scratch mean(rows * D);
    std::vector<RowStats> of_p(rows), of_q(rows);
    mean_of_head(p, nullptr, nullptr, nullptr, of_p.data(), mean.get(0));
    mean_of_head(q, nullptr, nullptr, nullptr, of_q.data(), gradient);
    for (size_t r = 0; r < rows; r++) {
      double along = 0;
      for (size_t i = r * D; i < (r + 1) * D; i++) along += (double(p.hidden[i]) - q.hidden[i]) * mean.get(0)[i];
      const double up = double(of_q[r].max) - of_p[r].max;
      kl[r] = float(along + (up + std::log(of_q[r].sum / of_p[r].sum)));
      for (size_t i = r * D; i < (r + 1) * D; i++) gradient[i] -= mean.get(0)[i];
    }
  }
  MatrixLayout l_;
  bool gradient_;
};

} // namespace
} // namespace pk

// `grad` may be null: the divergence alone.
extern "C" int pk_divergence(mlx_array* kl, mlx_array* grad, mlx_array reference, mlx_array of, const mlx_array* head,
                             size_t count, const int* layout, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    const auto s = get(s_);
    const MatrixLayout l{layout[0], layout[1], layout[2] != 0};
    std::vector<mx::array> in{f32(get(reference), s), f32(get(of), s)};
    push_head(in, head, count, l, "divergence");
    check_head(in[0], l, &in[2], "divergence");
    PK_REQUIRE(in[0].shape() == in[1].shape(), "divergence: states ", text(in[0]), " and ", text(in[1]), " differ in shape");
    const mx::Shape rows{in[0].shape(0)};
    auto primitive = std::make_shared<Divergence>(s, l, grad != nullptr);
    if (!grad) return put(kl, mx::array(rows, mx::float32, primitive, in));
    auto out = mx::array::make_arrays({rows, in[0].shape()}, {mx::float32, mx::float32}, primitive, in);
    put(kl, out[0]);
    put(grad, out[1]);
  });
}

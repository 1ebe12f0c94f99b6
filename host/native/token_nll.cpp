// Cross-entropy against a large vocabulary, and labels drawn from it, on a head as it is stored.
#include "head.h"

namespace pk {
namespace {

// A double in [0, 1) from seed and counter: two rounds of splitmix64's finaliser.
double uniform(uint64_t seed, uint64_t counter) {
  auto mix = [](uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  };
  return double(mix(mix(seed) ^ counter) >> 11) * 0x1p-53;
}

// inputs: hidden, targets, cotangent, head
class TokenNllGrad : public Kernel {
 public:
  TokenNllGrad(mx::Stream s, MatrixLayout l) : Kernel(s, "token_nll_grad"), l_(l) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    const auto hidden = dense(in[0], enc), targets = dense(in[1], enc), ct = dense(in[2], enc);
    const Matrix w = prepare_head(l_, &in[3], enc);
    allocate(out[0], enc);
    enc.dispatch([p = HeadProblem{hidden.data<float>(), hidden.shape(0), w}, t = targets.data<int32_t>(),
                  ct = ct.data<float>(), o = out[0].data<float>()] {
      mean_of_head(p, const_cast<int32_t*>(t), nullptr, ct, nullptr, o); // reads labels where none are drawn
    });
  }
  bool is_equivalent(const Primitive& o) const override { return static_cast<const TokenNllGrad&>(o).l_ == l_; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[0].shape()}; }

 private:
  MatrixLayout l_;
};

// inputs: hidden, targets, head; outputs: nll, and with `ahead` its gradient [N, D] by rows: found in the same pass,
// and there when it is asked for.
class TokenNll : public Kernel {
 public:
  TokenNll(mx::Stream s, MatrixLayout l, bool ahead) : Kernel(s, "token_nll"), l_(l), ahead_(ahead) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    const auto hidden = dense(in[0], enc), targets = dense(in[1], enc);
    const Matrix w = prepare_head(l_, &in[2], enc);
    for (auto& o : out) allocate(o, enc);
    enc.dispatch([p = HeadProblem{hidden.data<float>(), hidden.shape(0), w}, t = targets.data<int32_t>(),
                  nll = out[0].data<float>(), d = ahead_ ? out[1].data<float>() : nullptr] {
      by_blocks(p, [&](const HeadProblem& part, int first) {
        std::vector<RowStats> s;
        if (d) {
          s.resize(size_t(part.N));
          mean_of_head(part, const_cast<int32_t*>(t) + first, nullptr, nullptr, s.data(), d + size_t(first) * size_t(p.D()));
        } else {
          s = row_stats(part, t + first);
        }
        for (int r = 0; r < part.N; r++) nll[first + r] = negative_log_likelihood(part, r, t[first + r], s[size_t(r)]);
      });
    });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>& out) override {
    std::vector<mx::array> r;
    for (int n : argnums) {
      if (n != 0) fail("is differentiable in `hidden` only");
      if (ahead_) {
        r.push_back(mx::multiply(mx::reshape(ct[0], {-1, 1}, stream()), out[1], stream()));
        continue;
      }
      std::vector<mx::array> in{p[0], p[1], ct[0]};
      in.insert(in.end(), p.begin() + 2, p.end());
      r.push_back(mx::array(p[0].shape(), mx::float32, std::make_shared<TokenNllGrad>(stream(), l_), in));
    }
    return r;
  }
  bool is_equivalent(const Primitive& o) const override {
    auto& t = static_cast<const TokenNll&>(o);
    return t.l_ == l_ && t.ahead_ == ahead_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    if (ahead_) return {in[1].shape(), in[0].shape()};
    return {in[1].shape()};
  }

 private:
  MatrixLayout l_;
  bool ahead_;
};

// inputs: hidden, head; outputs: labels, d nll / d hidden
class FisherHead : public Kernel {
 public:
  FisherHead(mx::Stream s, MatrixLayout l, uint64_t seed) : Kernel(s, "fisher_head"), l_(l), seed_(seed) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    const auto hidden = dense(in[0], enc);
    const Matrix w = prepare_head(l_, &in[1], enc);
    for (auto& o : out) allocate(o, enc);
    enc.dispatch([p = HeadProblem{hidden.data<float>(), hidden.shape(0), w}, seed = seed_,
                  labels = out[0].data<int32_t>(), d = out[1].data<float>()] {
      by_blocks(p, [&](const HeadProblem& part, int first) {
        sample(part, seed, uint64_t(first), labels + first, d + size_t(first) * size_t(p.D()));
      });
    });
  }
  bool is_equivalent(const Primitive& o) const override {
    auto& f = static_cast<const FisherHead&>(o);
    return f.l_ == l_ && f.seed_ == seed_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    return {{in[0].shape(0)}, in[0].shape()};
  }

 private:
  static void sample(const HeadProblem& p, uint64_t seed, uint64_t first, int32_t* labels, float* out) {
    const ChunkStats s = chunk_stats(p, nullptr);
    const size_t rows = size_t(p.N), step = size_t(s.stride);
    Pick pick{std::vector<int>(rows), std::vector<double>(rows), std::vector<double>(rows)};
    for (size_t r = 0; r < rows; r++) {
      const RowStats row = s.join(p, int(r));
      double left = uniform(seed, first + r) * row.sum;
      int c = 0;
      for (; c < p.chunks() - 1; c++) {
        const size_t at = size_t(c) * step + r;
        const double mass = s.sum[at] * std::exp(double(s.max[at]) - row.max);
        if (left < mass) break;
        left -= mass;
      }
      pick.chunk[r] = c;
      pick.rest[r] = left;
      pick.max[r] = row.max;
    }
    std::fill_n(labels, p.N, -1); // until a row's chunk comes
    mean_of_head(p, labels, &pick, nullptr, nullptr, out);
  }
  MatrixLayout l_;
  uint64_t seed_;
};

} // namespace
} // namespace pk

// `ahead`: the gradient is found with the loss, for the one that will certainly be asked for it.
extern "C" int pk_token_nll(mlx_array* res, mlx_array hidden_, const mlx_array* head, size_t count, const int* layout,
                            mlx_array targets_, bool ahead, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    const auto s = get(s_);
    const MatrixLayout l{layout[0], layout[1], layout[2] != 0};
    std::vector<mx::array> in{f32(get(hidden_), s), mx::astype(get(targets_), mx::int32, s)};
    push_head(in, head, count, l, "token_nll");
    check_head(in[0], l, &in[2], "token_nll");
    PK_REQUIRE(in[1].ndim() == 1 && in[1].shape(0) == in[0].shape(0), "token_nll: targets ", text(in[1]),
            " must be [N] for hidden ", text(in[0]));
    auto primitive = std::make_shared<TokenNll>(s, l, ahead);
    if (!ahead) return put(res, mx::array(in[1].shape(), mx::float32, primitive, in));
    put(res, mx::array::make_arrays({in[1].shape(), in[0].shape()}, {mx::float32, mx::float32}, primitive, in)[0]);
  });
}

extern "C" int pk_fisher_head(mlx_array* labels, mlx_array* grad, mlx_array hidden_, const mlx_array* head, size_t count,
                              const int* layout, uint64_t seed, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    const auto s = get(s_);
    const MatrixLayout l{layout[0], layout[1], layout[2] != 0};
    std::vector<mx::array> in{f32(get(hidden_), s)};
    push_head(in, head, count, l, "fisher_head");
    check_head(in[0], l, &in[1], "fisher_head");
    auto out = mx::array::make_arrays({{in[0].shape(0)}, in[0].shape()}, {mx::int32, mx::float32},
                                      std::make_shared<FisherHead>(s, l, seed), in);
    put(labels, out[0]);
    put(grad, out[1]);
  });
}

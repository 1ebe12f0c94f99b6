// Cross-entropy against a large vocabulary without ever holding the [N, V] logits.
//
// The vocabulary is cut into chunks. Pass 1 (tasks = chunks): logits of a chunk for all rows, a panel of
// rows at a time, reduced at once to maximum and sum of exp per row and chunk; the chunks are joined in
// float64. Pass 2, for gradients (tasks = blocks of rows): the same logits again, turned into
// probabilities and multiplied with the chunk's rows of the head. No result depends on the number of
// threads or the size of a block of rows.
#include <cmath>
#include <limits>

#include "plastic.h"

namespace pk {
namespace {

struct Problem {
  const float *hidden, *head; // [N, D], [V, D]
  int N, D, V;

  // Rows of the head a task packs at a time: about 0.9 MB, in multiples of every table's mr.
  int chunk() const { return std::min(384, std::max(48, 221184 / std::max(D, 1) / 12 * 12)); }
  int chunks() const { return ceil_div(V, chunk()); }
  int rows_of(int c) const { return std::min(chunk(), V - c * chunk()); }
  const float* head_of(int c) const { return head + size_t(c) * chunk() * D; }
};

// Per chunk and row (stride apart): the largest logit, its token within the chunk, and the sum of
// exp(logit - largest). Per row: the target's logit as pass 1 computed it.
struct Stats {
  std::vector<float> max;
  std::vector<int32_t> top;
  std::vector<double> sum;
  std::vector<float> target;
  int stride;
};

double dot64(const float* a, const float* b, int n) {
  double s = 0;
  for (int i = 0; i < n; i++) s += double(a[i]) * double(b[i]);
  return s;
}

void pack_hidden(const Problem& p, int first, int rows, float* dst) {
  const Simd& k = simd();
  k.pack(p.hidden + size_t(first) * p.D, p.D, 1, rows, p.D, k.nr, 1.f, dst);
}

// The chunk's rows as panels of mr, and the logits [rows_of(c), width] of `width` (a multiple of nr) rows.
void pack_chunk(const Problem& p, int c, float* dst) {
  const Simd& k = simd();
  k.pack(p.head_of(c), p.D, 1, p.rows_of(c), p.D, k.mr, 1.f, dst);
}
void logits(const Problem& p, int c, const float* chunk, const float* hidden, int width, float* t) {
  const Simd& k = simd();
  k.gemm(p.rows_of(c), width, p.D, {chunk, k.mr, ptrdiff_t(p.D) * k.mr}, {hidden, k.nr, ptrdiff_t(p.D) * k.nr}, true, t,
         width, false);
}

// Pass 1. `targets` may be null.
Stats collect(const Problem& p, const int32_t* targets) {
  const Simd& k = simd();
  const int nr = k.nr, panels = ceil_div(p.N, nr), chunks = p.chunks();
  Stats s;
  s.stride = panels * nr;
  s.max.resize(size_t(chunks) * s.stride);
  s.top.resize(size_t(chunks) * s.stride);
  s.sum.resize(size_t(chunks) * s.stride);
  if (targets) s.target.resize(s.stride);
  Scratch hidden(size_t(s.stride) * p.D);
  parallel(panels, [&](size_t j) {
    pack_hidden(p, int(j) * nr, std::min(nr, p.N - int(j) * nr), hidden.get(0) + j * nr * p.D);
  });
  parallel(chunks, [&](size_t c) {
    const int n = p.rows_of(int(c)), v0 = int(c) * p.chunk();
    float* chunk = scratch(0, size_t(round_up(n, k.mr)) * p.D);
    float* t = scratch(1, size_t(n) * nr);
    pack_chunk(p, int(c), chunk);
    for (int j = 0; j < panels; j++) {
      logits(p, int(c), chunk, hidden.get(0) + size_t(j) * nr * p.D, nr, t);
      size_t at = c * s.stride + size_t(j) * nr;
      k.column_lse(t, nr, n, nr, &s.max[at], &s.top[at], &s.sum[at]);
      if (!targets) continue;
      for (int r = j * nr; r < std::min(p.N, (j + 1) * nr); r++)
        if (int v = targets[r] - v0; targets[r] >= v0 && v < n) s.target[r] = t[size_t(v) * nr + r - j * nr];
    }
  });
  return s;
}

// Joins the chunks of row r: the largest logit, where it is, and the sum of exp(logit - largest).
struct Joined {
  double max, sum;
  int top;
};
Joined join(const Problem& p, const Stats& s, int r) {
  Joined j{s.max[r], 0, s.top[r]};
  for (int c = 1; c < p.chunks(); c++)
    if (size_t at = size_t(c) * s.stride + r; s.max[at] > j.max) j.max = s.max[at], j.top = c * p.chunk() + s.top[at];
  for (int c = 0; c < p.chunks(); c++) {
    size_t at = size_t(c) * s.stride + r;
    j.sum += s.sum[at] * std::exp(double(s.max[at]) - j.max); // a NaN anywhere ends up here
  }
  return j;
}

// The loss of row r. Rounding of the logits enters the loss mostly through the target's and the largest
// one: both are replaced by their float64 values.
double loss(const Problem& p, const Stats& s, const Joined& j, int r, int target) {
  auto exact = [&](int v) { return dot64(p.hidden + size_t(r) * p.D, p.head + size_t(v) * p.D, p.D); };
  double t = exact(target), z = j.sum;
  if (j.top != target) z += std::exp(exact(j.top) - j.max) - 1;
  z += std::exp(t - j.max) - std::exp(s.target[r] - j.max);
  return std::log(z) + (j.max - t);
}

// Pass 2: out[r] = ct[r] * (softmax(logits[r]) - onehot(label[r])) @ head. Labels outside the vocabulary
// give NaN. With `pick`, row r's label is unknown yet: it is the first token of chunk pick[r] at which the
// running sum of exp(logit - max) within the chunk exceeds rest[r].
struct Pick {
  std::vector<int> chunk;
  std::vector<double> rest, max;
};
void gradient(const Problem& p, const float* lse, const float* ct, int32_t* labels, const Pick* pick, float* out) {
  const Simd& k = simd();
  // enough rows that transposing the head again for each block costs little; fewer if threads would idle
  if (p.N == 0) return;
  const int block = std::min(192, round_up(ceil_div(p.N, threads()), k.nr));
  parallel(ceil_div(p.N, block), [&](size_t b) {
    const int r0 = int(b) * block, rows = std::min(block, p.N - r0), width = round_up(rows, k.nr);
    float* hidden = scratch(2, size_t(width) * p.D);
    float* chunk = scratch(0, size_t(round_up(p.chunk(), k.mr)) * p.D);
    float* t = scratch(1, size_t(p.chunk()) * width);
    float* column = scratch(3, 2 * size_t(width));
    pack_hidden(p, r0, rows, hidden);
    for (int i = 0; i < width; i++) {
      column[i] = i < rows ? lse[r0 + i] : 0;
      column[width + i] = i < rows ? (ct ? ct[r0 + i] : 1.f) : 0;
    }
    for (int c = 0; c < p.chunks(); c++) {
      const int n = p.rows_of(c), v0 = c * p.chunk();
      pack_chunk(p, c, chunk);
      logits(p, c, chunk, hidden, width, t);
      if (pick)
        for (int i = 0; i < rows; i++)
          if (pick->chunk[r0 + i] == c) {
            double left = pick->rest[r0 + i];
            int v = 0;
            while (v < n - 1 && (left -= std::exp(double(t[size_t(v) * width + i]) - pick->max[r0 + i])) >= 0) v++;
            labels[r0 + i] = v0 + v;
          }
      k.column_softmax(t, width, n, width, column, column + width);
      for (int i = 0; i < rows; i++)
        if (int v = labels[r0 + i] - v0; labels[r0 + i] >= v0 && v < n) t[size_t(v) * width + i] -= column[width + i];
      k.gemm(rows, p.D, n, {t, width, k.mr}, {p.head_of(c), p.D, k.nr}, false, out + size_t(r0) * p.D, p.D, c > 0);
    }
    for (int i = 0; i < rows; i++)
      if (labels[r0 + i] < 0 || labels[r0 + i] >= p.V)
        std::fill_n(out + size_t(r0 + i) * p.D, p.D, std::numeric_limits<float>::quiet_NaN());
  });
}

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

Problem problem(const mx::array& hidden, const mx::array& head) {
  return {hidden.data<float>(), head.data<float>(), hidden.shape(0), hidden.shape(1), head.shape(0)};
}

// inputs: hidden, head, targets, lse, cotangent
class TokenNllGrad : public Kernel {
 public:
  explicit TokenNllGrad(mx::Stream s) : Kernel(s, "token_nll_grad") {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> a;
    for (auto& x : in) a.push_back(dense(x, enc));
    allocate(out[0], enc);
    enc.dispatch([p = problem(a[0], a[1]), t = a[2].data<int32_t>(), lse = a[3].data<float>(), ct = a[4].data<float>(),
                  o = out[0].data<float>()] { gradient(p, lse, ct, const_cast<int32_t*>(t), nullptr, o); });
  }
  bool is_equivalent(const Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[0].shape()}; }
};

// inputs: hidden, head, targets; outputs: nll, lse
class TokenNll : public Kernel {
 public:
  explicit TokenNll(mx::Stream s) : Kernel(s, "token_nll") {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto hidden = dense(in[0], enc), head = dense(in[1], enc), targets = dense(in[2], enc);
    for (auto& o : out) allocate(o, enc);
    enc.dispatch([p = problem(hidden, head), targets = targets.data<int32_t>(), nll = out[0].data<float>(),
                  lse = out[1].data<float>()] { run(p, targets, nll, lse); });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>& out) override {
    std::vector<mx::array> r;
    for (int n : argnums) {
      if (n != 0) fail("is differentiable in `hidden` only");
      r.push_back(mx::array(p[0].shape(), mx::float32, std::make_shared<TokenNllGrad>(stream()),
                            {p[0], p[1], p[2], out[1], ct[0]}));
    }
    return r;
  }
  bool is_equivalent(const Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override { return {in[2].shape(), in[2].shape()}; }

 private:
  static void run(const Problem& p, const int32_t* targets, float* nll, float* lse) {
    constexpr int BLOCK = 4096; // bounds the packed copy of hidden and the statistics
    for (int r0 = 0; r0 < p.N; r0 += BLOCK) {
      Problem part = p;
      part.hidden += size_t(r0) * p.D;
      part.N = std::min(BLOCK, p.N - r0);
      Stats s = collect(part, targets + r0);
      for (int r = 0; r < part.N; r++) {
        Joined j = join(part, s, r);
        int32_t t = targets[r0 + r];
        lse[r0 + r] = float(j.max + std::log(j.sum));
        nll[r0 + r] = t < 0 || t >= p.V ? std::numeric_limits<float>::quiet_NaN() : float(loss(part, s, j, r, t));
      }
    }
  }
};

// inputs: hidden, head; outputs: labels, d nll / d hidden
class FisherHead : public Kernel {
 public:
  FisherHead(mx::Stream s, uint64_t seed) : Kernel(s, "fisher_head"), seed_(seed) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto hidden = dense(in[0], enc), head = dense(in[1], enc);
    for (auto& o : out) allocate(o, enc);
    enc.dispatch([p = problem(hidden, head), seed = seed_, labels = out[0].data<int32_t>(), d = out[1].data<float>()] {
      constexpr int BLOCK = 4096;
      for (int r0 = 0; r0 < p.N; r0 += BLOCK) {
        Problem part = p;
        part.hidden += size_t(r0) * p.D;
        part.N = std::min(BLOCK, p.N - r0);
        sample(part, seed, uint64_t(r0), labels + r0, d + size_t(r0) * p.D);
      }
    });
  }
  bool is_equivalent(const Primitive& o) const override { return static_cast<const FisherHead&>(o).seed_ == seed_; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    return {{in[0].shape(0)}, in[0].shape()};
  }

 private:
  static void sample(const Problem& p, uint64_t seed, uint64_t first, int32_t* labels, float* out) {
    Stats s = collect(p, nullptr);
    std::vector<float> lse(p.N);
    Pick pick{std::vector<int>(p.N), std::vector<double>(p.N), std::vector<double>(p.N)};
    const int chunks = p.chunks();
    for (int r = 0; r < p.N; r++) {
      auto [m, z, top] = join(p, s, r);
      lse[r] = float(m + std::log(z));
      double left = uniform(seed, first + r) * z;
      int c = 0;
      for (; c < chunks - 1; c++) {
        double mass = s.sum[size_t(c) * s.stride + r] * std::exp(double(s.max[size_t(c) * s.stride + r]) - m);
        if (left < mass) break;
        left -= mass;
      }
      pick.chunk[r] = c;
      pick.rest[r] = left;
      pick.max[r] = m;
    }
    std::fill_n(labels, p.N, -1); // until a row's chunk comes
    gradient(p, lse.data(), nullptr, labels, &pick, out);
  }
  uint64_t seed_;
};

void check(const mx::array& hidden, const mx::array& head, const char* what) {
  PK_REQUIRE(hidden.ndim() == 2 && head.ndim() == 2 && hidden.shape(1) == head.shape(1), what, ": hidden ", text(hidden),
          " must be [N, D] and head ", text(head), " [V, D]");
  PK_REQUIRE(head.shape(0) > 0 && head.shape(1) > 0, what, ": head ", text(head), " is empty");
}

} // namespace
} // namespace pk

extern "C" int pk_token_nll(mlx_array* res, mlx_array hidden_, mlx_array head_, mlx_array targets_, mlx_stream s_,
                            char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto hidden = f32(get(hidden_), s), head = f32(get(head_), s), targets = mx::astype(get(targets_), mx::int32, s);
    check(hidden, head, "token_nll");
    PK_REQUIRE(targets.ndim() == 1 && targets.shape(0) == hidden.shape(0), "token_nll: targets ", text(targets),
            " must be [N] for hidden ", text(hidden));
    put(res, mx::array::make_arrays({targets.shape(), targets.shape()}, {mx::float32, mx::float32},
                                    std::make_shared<TokenNll>(s), {hidden, head, targets})[0]);
  });
}

extern "C" int pk_fisher_head(mlx_array* labels, mlx_array* grad, mlx_array hidden_, mlx_array head_, uint64_t seed,
                              mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto hidden = f32(get(hidden_), s), head = f32(get(head_), s);
    check(hidden, head, "fisher_head");
    auto out = mx::array::make_arrays({{hidden.shape(0)}, hidden.shape()}, {mx::int32, mx::float32},
                                      std::make_shared<FisherHead>(s, seed), {hidden, head});
    put(labels, out[0]);
    put(grad, out[1]);
  });
}

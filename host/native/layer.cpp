// A whole decoder layer as one MLX primitive, for inference over a cache. For one token MLX spends more on a layer's
// thirty operations than the layer's arithmetic takes; here nothing is between the stages but the pool's barrier, and
// what they hand on stays in cache.
//
// h += O(attention(Q(n), K(n), V(n))), n = rms_norm(h); h += Down(swiglu(Gate(m), Up(m))), m = rms_norm(h).
// The same functions as the primitives of each stage: the same numbers.
#include "cache.h"
#include "cached_attention.h"
#include "projection.h"

namespace pk {
namespace {

enum { Q, K, V, O, GATE, UP, DOWN, PROJECTIONS };
enum { H_IN, INPUT_NORM, POST_NORM, FREQS, KEYS, VALUES, FIRST }; // then q_norm and k_norm (if any), then projections

constexpr size_t SERIAL = 16384; // elements below which one thread does what lies between products

struct Sizes {
  int outputs[PROJECTIONS];
};

// Splits n elements, or n rows of `row` elements, over the threads where that is worth it.
template <class F>
void over(size_t n, size_t row, F&& f) {
  const size_t step = std::max<size_t>(1, SERIAL / std::max<size_t>(row, 1));
  if (n <= step) return f(size_t(0), n);
  parallel((n + step - 1) / step, [&](size_t c) { f(c * step, std::min(step, n - c * step)); });
}

void rms_norm(const float* x, const float* w, float* y, int rows, int n, float eps) {
  over(size_t(rows), size_t(n), [&](size_t from, size_t count) {
    simd().rms_norm(x + from * n, w, y + from * n, int(count), n, eps);
  });
}

struct LayerRun {
  std::vector<Prepared> p;
  Sizes sizes;
  CachedAttention attention;
  const float *h, *input_norm, *post_norm;
  float* out;
  int M, D;
  float eps;

  void operator()(const int* rows, const int* past) {
    thread_local Scratch room;
    const int* n = sizes.outputs;
    const size_t m = size_t(M), wide = size_t(n[GATE]), qkv = size_t(n[Q]) + n[K] + n[V];
    // the norm; q, k, v and the attention's result; then gate and up where those were
    float* norm = room.get(m * (D + std::max(qkv + n[Q], 2 * wide)));
    float *q = norm + m * D, *k = q + m * n[Q], *v = k + m * n[K], *mixed = v + m * n[V];
    auto at = [&](int i, float* y, const float* residual) { return p[size_t(i)].get(y, n[i], residual, D); };

    rms_norm(h, input_norm, norm, M, D, eps);
    const Projection first[] = {at(Q, q, nullptr), at(K, k, nullptr), at(V, v, nullptr)};
    project(first, 3, norm, D, M);
    const int T = attention.T;
    attention.rows = rows, attention.past = past;
    attention.q = {q, ptrdiff_t(T) * n[Q], n[Q]};
    attention.k = {k, ptrdiff_t(T) * n[K], n[K]};
    attention.v = {v, ptrdiff_t(T) * n[V], n[V]};
    attention.out = mixed;
    run(attention);
    const Projection joined = at(O, out, h);
    project(&joined, 1, mixed, n[Q], M);

    rms_norm(out, post_norm, norm, M, D, eps);
    float *gate = q, *up = gate + m * wide;
    const Projection second[] = {at(GATE, gate, nullptr), at(UP, up, nullptr)};
    project(second, 2, norm, D, M);
    over(m * wide, 1, [&](size_t from, size_t count) { simd().swiglu(gate + from, up + from, gate + from, count); });
    // the residual is what is added to: down goes to a place of its own first
    const Projection down = at(DOWN, norm, out);
    project(&down, 1, gate, ptrdiff_t(wide), M);
    memcpy(out, norm, sizeof(float) * m * size_t(D));
  }
};

class Layer : public Kernel {
 public:
  Layer(mx::Stream s, std::vector<ProjectionLayout> l, Sizes sizes, CacheUse use, bool norms)
      : Kernel(s, "layer"), l_(std::move(l)), sizes_(sizes), use_(std::move(use)), norms_(norms) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    use_.open(in, KEYS, out, enc);
    auto get = [&](size_t i) { return dense(in[i], enc).data<float>(); };
    allocate(out[0], enc);
    LayerRun r{};
    size_t next = FIRST;
    CachedAttention& a = r.attention;
    if (norms_) a.q_norm = get(next), a.k_norm = get(next + 1), next += 2;
    for (auto& l : l_) {
      r.p.emplace_back(l, in.data() + next, enc, false);
      next += l.arrays();
    }
    const mx::Shape &h = in[H_IN].shape(), &held = in[KEYS].shape();
    r.sizes = sizes_;
    r.h = get(H_IN), r.input_norm = get(INPUT_NORM), r.post_norm = get(POST_NORM);
    r.out = out[0].data<float>();
    r.M = h[0] * h[1], r.D = h[2], r.eps = use_.eps;
    a.B = h[0], a.T = h[1], a.Hkv = held[1], a.D = held[3], a.H = sizes_.outputs[Q] / a.D, a.capacity = use_.capacity;
    a.scale = use_.scale, a.eps = use_.eps, a.traditional = use_.traditional;
    a.freqs = get(FREQS);
    a.keys = out[1].data<float>(), a.values = out[2].data<float>();
    if (r.M == 0) return;
    enc.dispatch([r = std::move(r), rows = use_.rows, past = use_.past]() mutable { r(rows.data(), past.data()); });
  }
  bool is_equivalent(const Primitive&) const override { return false; } // it may write into its inputs

 private:
  std::vector<ProjectionLayout> l_;
  Sizes sizes_;
  CacheUse use_;
  bool norms_;
};

} // namespace
} // namespace pk

// `arrays`: input norm, post norm, freqs, keys, values, q_norm and k_norm where `norms`, then those of the seven
// projections, in the order q, k, v, o, gate, up, down, which `layout` describes one after the other.
extern "C" int pk_layer(mlx_array* res, mlx_array* keys_res, mlx_array* values_res, mlx_array h_,
                        const mlx_array* arrays, size_t count, const int* layout, bool norms, const int* rows,
                        size_t n_rows, const int* past, size_t n_past, int capacity, float scale, float eps,
                        bool traditional, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    const char* what = "layer";
    auto s = get(s_);
    std::vector<mx::array> in{f32(get(h_), s)};
    for (size_t i = 0; i < count; i++) in.push_back(get(arrays[i]));
    std::vector<ProjectionLayout> l;
    size_t wanted = FIRST + (norms ? 2 : 0);
    for (int i = 0; i < PROJECTIONS; i++) {
      l.push_back(ProjectionLayout::read(layout));
      wanted += l.back().arrays();
    }
    PK_REQUIRE(in.size() == wanted, what, ": ", in.size(), " arrays for a layout of ", wanted);
    const auto &h = in[H_IN], &keys = in[KEYS];
    PK_REQUIRE(h.ndim() == 3, what, ": h ", text(h), " must be [B, T, D]");
    const CacheUse use{{rows, rows + n_rows}, {past, past + n_past}, capacity, scale, eps, traditional};
    use.check(keys, in[VALUES], in[FREQS], h.shape(0), h.shape(1), what);
    const int D = h.shape(2), head = keys.shape(3), kv = keys.shape(1) * head;
    auto vector_of = [&](size_t i, int n) {
      PK_REQUIRE(in[i].dtype() == mx::float32 && in[i].ndim() == 1 && in[i].shape(0) == n, what, ": a norm ", text(in[i]),
              " must be float32 [", n, "]");
    };
    vector_of(INPUT_NORM, D), vector_of(POST_NORM, D);
    if (norms) vector_of(FIRST, head), vector_of(FIRST + 1, head);
    PK_REQUIRE(in[FREQS].dtype() == mx::float32, what, ": freqs must be float32");
    Sizes sizes{};
    const mx::array* next = in.data() + FIRST + (norms ? 2 : 0);
    for (int i = 0; i < PROJECTIONS; i++) {
      const int inner = i == O ? sizes.outputs[Q] : i == DOWN ? sizes.outputs[GATE] : D;
      sizes.outputs[i] = l[size_t(i)].check(next, inner, what);
      next += l[size_t(i)].arrays();
    }
    const int* n = sizes.outputs;
    PK_REQUIRE(n[Q] % kv == 0 && n[K] == kv && n[V] == kv && n[O] == D && n[UP] == n[GATE] && n[DOWN] == D, what,
            ": projections of ", n[Q], ", ", n[K], ", ", n[V], ", ", n[O], ", ", n[GATE], ", ", n[UP], " and ", n[DOWN],
            " outputs do not fit h ", text(h), " and keys ", text(keys));
    const auto cache = use.shape(keys);
    auto out = mx::array::make_arrays({h.shape(), cache, cache}, {mx::float32, mx::float32, mx::float32},
                                      std::make_shared<Layer>(s, std::move(l), sizes, use, norms), in);
    put(res, out[0]);
    put(keys_res, out[1]);
    put(values_res, out[2]);
  });
}

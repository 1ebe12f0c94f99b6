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
enum { INPUT_NORM, POST_NORM, FREQS, FIRST }; // then q_norm and k_norm (if any), then those of the projections

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

} // namespace

// What a layer is made of, looked at once: the arrays it keeps alive and where their numbers lie.
struct LayerWeights {
  std::vector<mx::array> kept;
  std::vector<Prepared> p;
  Sizes sizes{};
  const float *input_norm, *post_norm, *freqs, *q_norm = nullptr, *k_norm = nullptr;
  int D, head;
  float scale, eps;
  bool traditional;
};

namespace {

struct LayerRun {
  std::shared_ptr<const LayerWeights> w;
  CachedAttention attention;
  const float* h;
  float* out;
  int M;

  void operator()(const int* rows, const int* past) {
    thread_local Scratch room;
    const int *n = w->sizes.outputs, D = w->D;
    const size_t m = size_t(M), wide = size_t(n[GATE]), qkv = size_t(n[Q]) + n[K] + n[V];
    // the norm; q, k, v and the attention's result; then gate and up where those were
    float* norm = room.get(m * (D + std::max(qkv + n[Q], 2 * wide)));
    float *q = norm + m * D, *k = q + m * n[Q], *v = k + m * n[K], *mixed = v + m * n[V];
    auto at = [&](int i, float* y, const float* residual) { return w->p[size_t(i)].get(y, n[i], residual, D); };

    rms_norm(h, w->input_norm, norm, M, D, w->eps);
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

    rms_norm(out, w->post_norm, norm, M, D, w->eps);
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

// inputs: h [B, T, D], keys, values; outputs: the same
class Layer : public Kernel {
 public:
  Layer(mx::Stream s, std::shared_ptr<const LayerWeights> w, CacheUse use)
      : Kernel(s, "layer"), w_(std::move(w)), use_(std::move(use)) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    use_.open(in, 1, out, enc);
    allocate(out[0], enc);
    const mx::Shape &h = in[0].shape(), &held = in[1].shape();
    LayerRun r{w_, {}, dense(in[0], enc).data<float>(), out[0].data<float>(), h[0] * h[1]};
    CachedAttention& a = r.attention;
    a.B = h[0], a.T = h[1], a.Hkv = held[1], a.D = held[3], a.H = w_->sizes.outputs[Q] / a.D, a.capacity = use_.capacity;
    a.scale = w_->scale, a.eps = w_->eps, a.traditional = w_->traditional;
    a.freqs = w_->freqs, a.q_norm = w_->q_norm, a.k_norm = w_->k_norm;
    a.keys = out[1].data<float>(), a.values = out[2].data<float>();
    if (r.M == 0) return;
    enc.dispatch([r = std::move(r), rows = use_.rows, past = use_.past]() mutable { r(rows.data(), past.data()); });
  }
  bool is_equivalent(const Primitive&) const override { return false; } // it may write into its inputs

 private:
  std::shared_ptr<const LayerWeights> w_;
  CacheUse use_;
};

// Evaluated, its numbers one after the other; a matrix may lie in columns.
mx::array settled(mx::array a, mx::Stream s) {
  a.eval();
  if (a.flags().row_contiguous || (a.ndim() == 2 && a.strides(0) == 1 && a.strides(1) == a.shape(0))) return a;
  a = mx::contiguous(a, false, s);
  a.eval();
  return a;
}

} // namespace
} // namespace pk

// A layer to be run often. `arrays`: input norm, post norm, freqs, q_norm and k_norm where `norms`, then those of the
// seven projections, in the order q, k, v, o, gate, up, down, which `layout` describes one after the other. They are
// evaluated and kept until pk_layer_free.
extern "C" int pk_layer_new(void** res, const mlx_array* arrays, size_t count, const int* layout, bool norms,
                            int kv_heads, float scale, float eps, bool traditional, mlx_stream s_, char* err,
                            size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    const char* what = "layer";
    auto s = get(s_);
    auto w = std::make_shared<LayerWeights>();
    for (size_t i = 0; i < count; i++) w->kept.push_back(settled(get(arrays[i]), s));
    const auto& in = w->kept;
    std::vector<ProjectionLayout> l;
    size_t next = FIRST + (norms ? 2 : 0), wanted = next;
    for (int i = 0; i < PROJECTIONS; i++) {
      l.push_back(ProjectionLayout::read(layout));
      wanted += l.back().arrays();
    }
    PK_REQUIRE(in.size() == wanted, what, ": ", in.size(), " arrays for a layout of ", wanted);
    auto vector_of = [&](size_t i, int n) {
      PK_REQUIRE(in[i].dtype() == mx::float32 && in[i].ndim() == 1 && (n == 0 || in[i].shape(0) == n), what,
                 ": a vector ", text(in[i]), " must be float32 [", n, "]");
      return in[i].data<float>();
    };
    w->input_norm = vector_of(INPUT_NORM, 0);
    const int D = w->D = in[INPUT_NORM].shape(0);
    w->post_norm = vector_of(POST_NORM, D);
    w->freqs = vector_of(FREQS, 0);
    const int head = w->head = 2 * in[FREQS].shape(0), kv = kv_heads * head;
    if (norms) w->q_norm = vector_of(FIRST, head), w->k_norm = vector_of(FIRST + 1, head);
    w->scale = scale, w->eps = eps, w->traditional = traditional;
    auto& enc = mx::cpu::get_command_encoder(s);
    int* n = w->sizes.outputs;
    for (int i = 0; i < PROJECTIONS; i++) {
      const int inner = i == O ? n[Q] : i == DOWN ? n[GATE] : D;
      n[i] = l[size_t(i)].check(in.data() + next, inner, what);
      w->p.emplace_back(l[size_t(i)], in.data() + next, enc, false);
      next += l[size_t(i)].arrays();
    }
    PK_REQUIRE(kv > 0 && n[Q] % kv == 0 && n[K] == kv && n[V] == kv && n[O] == D && n[UP] == n[GATE] && n[DOWN] == D, what,
               ": projections of ", n[Q], ", ", n[K], ", ", n[V], ", ", n[O], ", ", n[GATE], ", ", n[UP], " and ", n[DOWN],
               " outputs do not fit ", D, " features and ", kv_heads, " heads of ", head);
    *res = new std::shared_ptr<const LayerWeights>(std::move(w));
  });
}

extern "C" void pk_layer_free(void* layer) { delete static_cast<std::shared_ptr<const pk::LayerWeights>*>(layer); }

// h [B, T, D] through a layer; the caches as in pk_cached_attention.
extern "C" int pk_layer(mlx_array* res, mlx_array* keys_res, mlx_array* values_res, const void* layer, mlx_array h_,
                        mlx_array keys_, mlx_array values_, const int* rows, size_t n_rows, const int* past,
                        size_t n_past, int capacity, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    const auto& w = *static_cast<const std::shared_ptr<const LayerWeights>*>(layer);
    auto h = f32(get(h_), s);
    const auto &keys = get(keys_), &values = get(values_);
    PK_REQUIRE(h.ndim() == 3 && h.shape(2) == w->D, "layer: h ", text(h), " must be [B, T, ", w->D, "]");
    const CacheUse use{{rows, rows + n_rows}, {past, past + n_past}, capacity};
    use.check(keys, values, h.shape(0), h.shape(1), "layer");
    PK_REQUIRE(keys.shape(1) * w->head == w->sizes.outputs[K] && keys.shape(3) == w->head, "layer: keys ", text(keys),
               " for heads of ", w->head);
    const auto cache = use.shape(keys);
    auto out = mx::array::make_arrays({h.shape(), cache, cache}, {mx::float32, mx::float32, mx::float32},
                                      std::make_shared<Layer>(s, w, use), {h, keys, values});
    put(res, out[0]);
    put(keys_res, out[1]);
    put(values_res, out[2]);
  });
}

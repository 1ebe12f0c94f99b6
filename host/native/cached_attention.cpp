// See cached_attention.h. Few new positions (decoding): a task takes one sequence, one key head and one chunk of
// its keys, writes the new keys that fall into the chunk and then attends with all queries of that head's group;
// the chunks are joined at the end. Many (a prompt): keys, values and queries are written first, then attention
// runs in blocks.
#include "cached_attention.h"
#include "cache.h"

#include <utility>

#include "attention.h"

namespace pk {
namespace {

constexpr int CHUNK = 256;   // keys of a task when decoding
constexpr int FEW = 8;       // new positions that are still decoding
constexpr int SLOT = 5;      // scratch of this file; attention.cpp's tasks use 0 to 3
constexpr size_t WAKE = 100'000; // bytes of keys and values, some 5 us: waking a thread costs as much

int row_of(const CachedAttention& a, int b) { return a.rows ? a.rows[b] : b; }
int past_of(const CachedAttention& a, int b) { return a.past[row_of(a, b)]; }
size_t cell(const CachedAttention& a, int b, int head, int position) {
  return ((size_t(row_of(a, b)) * a.Hkv + head) * a.capacity + position) * a.D;
}

// Cosines and sines [B, T, 2, D / 2] of the positions. The layers of a model ask for the same ones, one after
// another: this thread's last answer is kept.
const float* angles(const CachedAttention& a) {
  struct Kept {
    std::vector<float> freqs, turns;
    std::vector<int> past;
    int T = 0;
  };
  static thread_local Kept kept;
  const int half = a.D / 2;
  bool same = kept.T == a.T && int(kept.past.size()) == a.B && int(kept.freqs.size()) == half &&
              std::equal(kept.freqs.begin(), kept.freqs.end(), a.freqs);
  for (int b = 0; same && b < a.B; b++) same = kept.past[b] == past_of(a, b);
  if (same) return kept.turns.data();
  kept.T = a.T;
  kept.freqs.assign(a.freqs, a.freqs + half);
  kept.past.resize(a.B);
  for (int b = 0; b < a.B; b++) kept.past[b] = past_of(a, b);
  kept.turns.resize(size_t(a.B) * a.T * 2 * half);
  std::vector<float> turn(half); // radians per position
  for (int i = 0; i < half; i++) turn[i] = 1.f / a.freqs[i];
  const int step = std::max(1, 1024 / half), all = a.B * a.T;
  const Kept& k = kept; // a thread_local names another object on each thread
  float* turns = kept.turns.data();
  parallel(ceil_div(all, step), [&](size_t task) {
    for (int n = int(task) * step; n < std::min(all, int(task + 1) * step); n++) {
      const float position = float(k.past[n / a.T] + n % a.T);
      float *cos = turns + size_t(n) * 2 * half, *sin = cos + half;
      for (int i = 0; i < half; i++) {
        const float angle = position * turn[i];
        cos[i] = std::cos(angle);
        sin[i] = std::sin(angle);
      }
    }
  });
  return turns;
}

// One head of q or k: normed where there is a weight, then turned. x and y may be the same.
void turn(const CachedAttention& a, const float* x, const float* norm, const float* cos, float* y) {
  const Simd& f = simd();
  float* normed = scratch(SLOT, size_t(a.D));
  if (norm) f.rms_norm(x, norm, normed, 1, a.D, a.eps), x = normed;
  f.rope(x, y, cos, cos + a.D / 2, a.D / 2, a.traditional);
}

// Writes the new keys and values of positions from <= t < to into the cache.
void append(const CachedAttention& a, const float* angles, int b, int head, int from, int to) {
  for (int t = from; t < to; t++) {
    const size_t at = cell(a, b, head, past_of(a, b) + t);
    turn(a, a.k.at(b, t) + size_t(head) * a.D, a.k_norm, angles + (size_t(b) * a.T + t) * a.D, a.keys + at);
    memcpy(a.values + at, a.v.at(b, t) + size_t(head) * a.D, sizeof(float) * size_t(a.D));
  }
}

void decode(const CachedAttention& a, const float* angles) {
  const Simd& f = simd();
  const int D = a.D, group = a.H / a.Hkv, queries = group * a.T;
  // Tasks of sequence b: first[b] + head * chunks + chunk.
  std::vector<int> first(a.B + 1, 0);
  std::vector<int> owner; // sequence of each task
  size_t bytes = 0;
  for (int b = 0; b < a.B; b++) {
    const int length = past_of(a, b) + a.T;
    bytes += size_t(length) * a.Hkv * D * 2 * sizeof(float);
    first[b + 1] = first[b] + a.Hkv * ceil_div(length, CHUNK);
    owner.resize(first[b + 1], b);
  }
  const int tasks = first[a.B];
  // of each task and query: result [D], largest score, sum
  float* partial = scratch(SLOT + 1, size_t(tasks) * queries * (D + 2));
  float *max = partial + size_t(tasks) * queries * D, *sum = max + size_t(tasks) * queries;
  auto task = [&](size_t p) {
    const int b = owner[p], past = past_of(a, b), chunks = ceil_div(past + a.T, CHUNK);
    const int head = (int(p) - first[b]) / chunks, k0 = (int(p) - first[b]) % chunks * CHUNK;
    append(a, angles, b, head, std::max(0, k0 - past), std::min(a.T, k0 + CHUNK - past));
    float *s = scratch(0, 4 * (CHUNK + 16)), *q = scratch(1, size_t(group) * D);
    for (int t = 0; t < a.T; t++) {
      const size_t at = p * queries + size_t(t) * group;
      const int n = std::min(CHUNK, past + t + 1 - k0);
      std::fill_n(sum + at, group, 0.f);
      std::fill_n(max + at, group, -INFINITY);
      if (n <= 0) continue;
      const float* x = a.q.at(b, t) + size_t(head) * group * D;
      for (int i = 0; i < group; i++)
        turn(a, x + size_t(i) * D, a.q_norm, angles + (size_t(b) * a.T + t) * D, q + size_t(i) * D);
      for (int i = 0; i < group * D; i++) q[i] *= a.scale;
      f.attend(q, group, a.keys + cell(a, b, head, k0), D, a.values + cell(a, b, head, k0), D, n, D, s, max + at,
               sum + at, partial + at * D);
    }
  };
  if (bytes < WAKE)
    for (int p = 0; p < tasks; p++) task(p);
  else parallel(tasks, task);

  for (int b = 0; b < a.B; b++) { // join the chunks
    const int chunks = ceil_div(past_of(a, b) + a.T, CHUNK);
    for (int t = 0; t < a.T; t++)
      for (int h = 0; h < a.H; h++) {
        const size_t head = first[b] + size_t(h / group) * chunks, query = size_t(t) * group + h % group;
        float *y = a.out + ((size_t(b) * a.T + t) * a.H + h) * D, top = -INFINITY, total = 0;
        for (int c = 0; c < chunks; c++) top = std::max(top, max[(head + c) * queries + query]);
        std::fill_n(y, D, 0.f);
        for (int c = 0; c < chunks; c++) {
          const size_t at = (head + c) * queries + query;
          if (sum[at] == 0) continue;
          const float w = std::exp(max[at] - top), *x = partial + at * D;
          total += w * sum[at];
          for (int d = 0; d < D; d++) y[d] += w * x[d];
        }
        for (int d = 0; d < D; d++) y[d] /= total;
      }
  }
}

void prefill(const CachedAttention& a, const float* angles) {
  const int D = a.D, group = a.H / a.Hkv, blocks = ceil_div(a.T, BLOCK);
  float* q = scratch(SLOT + 1, size_t(a.B) * a.T * a.H * D + size_t(a.H) * a.T);
  float* lse = q + size_t(a.B) * a.T * a.H * D;
  parallel(size_t(a.B) * a.Hkv * blocks, [&](size_t task) {
    const int block = int(task % blocks), b = int(task / blocks / a.Hkv), head = int(task / blocks % a.Hkv);
    const int from = block * BLOCK, to = std::min(a.T, from + BLOCK);
    append(a, angles, b, head, from, to);
    for (int t = from; t < to; t++)
      for (int h = head * group; h < (head + 1) * group; h++)
        turn(a, a.q.at(b, t) + size_t(h) * D, a.q_norm, angles + (size_t(b) * a.T + t) * D,
             q + ((size_t(b) * a.T + t) * a.H + h) * D);
  });
  for (int b = 0; b < a.B; b++) {
    const AttentionShape s{1, a.H, a.Hkv, a.T, past_of(a, b) + a.T, D, a.scale, true};
    const int64_t line = int64_t(a.H) * D, step = int64_t(a.capacity) * D;
    const size_t at = size_t(b) * a.T * a.H * D, held = cell(a, b, 0, 0);
    attend_in_blocks(s, {q + at, 0, D, line, 1}, {a.keys + held, 0, step, D, 1}, {a.values + held, 0, step, D, 1},
                     {a.out + at, 0, D, line, 1}, lse);
  }
}

} // namespace

void run(const CachedAttention& a) {
  if (a.B == 0 || a.T == 0) return;
  const float* turns = angles(a);
  a.T <= FEW ? decode(a, turns) : prefill(a, turns);
}

namespace {

// Copies what each row holds.
void copy_held(const float* from, int capacity, float* to, int wider, const std::vector<int>& past, int heads, int d) {
  parallel(past.size() * size_t(heads), [&](size_t i) {
    memcpy(to + i * wider * d, from + i * capacity * d, sizeof(float) * size_t(past[i / heads]) * d);
  });
}

RowsOf rows_of(const mx::array& a) { return {a.data<float>(), a.strides(0), a.strides(1)}; }

struct How {
  float scale, eps;
  bool traditional, norms;
};

// inputs: q [B, T, H * D], k, v [B, T, Hkv * D], keys, values [R, Hkv, held, D], freqs [D / 2], perhaps q_norm and
// k_norm [D]; outputs: attention [B, T, H * D], keys, values [R, Hkv, capacity, D]
class CachedAttentionKernel : public Kernel {
 public:
  CachedAttentionKernel(mx::Stream s, CacheUse use, How how)
      : Kernel(s, "cached_attention"), use_(std::move(use)), how_(how) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    use_.open(in, 3, out, enc);
    auto q = unit_rows(in[0], enc), k = unit_rows(in[1], enc), v = unit_rows(in[2], enc), freqs = dense(in[5], enc);
    allocate(out[0], enc);
    const int heads = in[3].shape(1), d = in[3].shape(3);
    const float *q_norm = nullptr, *k_norm = nullptr;
    if (how_.norms) {
      auto qn = dense(in[6], enc), kn = dense(in[7], enc);
      q_norm = qn.data<float>(), k_norm = kn.data<float>();
    }
    CachedAttention a{q.shape(0),       q.shape(1), q.shape(2) / d, heads,      d,      use_.capacity,
                      how_.scale,       how_.eps,   how_.traditional, nullptr,  nullptr, rows_of(q),
                      rows_of(k),       rows_of(v), freqs.data<float>(), q_norm, k_norm, out[1].data<float>(),
                      out[2].data<float>(), out[0].data<float>()};
    enc.dispatch([a, rows = use_.rows, past = use_.past]() mutable {
      a.rows = rows.data();
      a.past = past.data();
      run(a);
    });
  }
  bool is_equivalent(const Primitive&) const override { return false; } // it may write into its inputs

 private:
  // The input itself when its last axis lies together.
  static mx::array unit_rows(const mx::array& a, mx::cpu::CommandEncoder& enc) {
    enc.set_input_array(a);
    return a.strides(2) == 1 || a.shape(2) == 1 ? a : dense(a, enc);
  }
  CacheUse use_;
  How how_;
};

} // namespace

void CacheUse::check(const mx::array& keys, const mx::array& values, int B, int T, const char* what) const {
  PK_REQUIRE(keys.ndim() == 4 && keys.shape() == values.shape() && keys.dtype() == mx::float32 &&
              values.dtype() == mx::float32 && keys.shape(1) > 0 && keys.shape(3) > 0 && keys.shape(3) % 2 == 0,
          what, ": keys ", text(keys), " and values ", text(values),
          " must be float32 [R, Hkv, capacity, D] with an even D");
  const int R = keys.shape(0);
  PK_REQUIRE(past.size() == size_t(R) && rows.size() == size_t(B), what, ": ", past.size(), " lengths and ", rows.size(),
          " rows for keys ", text(keys), " and ", B, " sequences");
  for (int p : past)
    PK_REQUIRE(p >= 0 && p <= keys.shape(2) && p <= capacity, what, ": a row of ", p, " positions in keys ", text(keys));
  std::vector<bool> used(size_t(R), false);
  for (int r : rows) {
    PK_REQUIRE(r >= 0 && r < R && !used[size_t(r)], what, ": row ", r, " is not one of ", R, ", or is there twice");
    used[size_t(r)] = true;
    PK_REQUIRE(int64_t(past[size_t(r)]) + T <= capacity, what, ": row ", r, " holds ", past[size_t(r)], " positions; ", T,
            " more exceed the capacity of ", capacity);
  }
}

void CacheUse::open(const std::vector<mx::array>& in, size_t at, std::vector<mx::array>& out,
                    mx::cpu::CommandEncoder& enc) const {
  for (auto& o : out)
    if (!o.is_tracer() && &std::as_const(o).inputs() != &in) o.inputs().clear();
  const mx::Shape& held = in[at].shape();
  for (size_t i : {at, at + 1}) {
    auto& to = out[i - at + 1];
    if (held[2] == capacity && in[i].is_donatable() && in[i].flags().row_contiguous) {
      enc.set_input_array(in[i]);
      to.copy_shared_buffer(in[i]);
      continue;
    }
    auto from = dense(in[i], enc);
    allocate(to, enc);
    if (from.size() == 0) continue;
    enc.dispatch([from = from.data<float>(), had = held[2], to = to.data<float>(), wider = capacity, past = past,
                  heads = held[1], d = held[3]] { copy_held(from, had, to, wider, past, heads, d); });
  }
}

} // namespace pk

extern "C" int pk_cached_attention(mlx_array* res, mlx_array* keys_res, mlx_array* values_res, mlx_array q_,
                                   mlx_array k_, mlx_array v_, mlx_array keys_, mlx_array values_, mlx_array freqs_,
                                   mlx_array q_norm_, mlx_array k_norm_, const int* rows, size_t n_rows,
                                   const int* past, size_t n_past, int capacity, float scale, float eps,
                                   bool traditional, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    auto q = f32(get(q_), s), k = f32(get(k_), s), v = f32(get(v_), s), freqs = f32(get(freqs_), s);
    auto &keys = get(keys_), &values = get(values_);
    PK_REQUIRE(q.ndim() == 3 && k.ndim() == 3 && k.shape() == v.shape() && q.shape(0) == k.shape(0) && q.shape(1) == k.shape(1),
            "cached attention: q ", text(q), " must be [B, T, H * D] and k ", text(k), ", v ", text(v), " [B, T, Hkv * D]");
    const CacheUse use{{rows, rows + n_rows}, {past, past + n_past}, capacity};
    use.check(keys, values, q.shape(0), q.shape(1), "cached attention");
    PK_REQUIRE(freqs.ndim() == 1 && freqs.shape(0) == keys.shape(3) / 2, "cached attention: freqs ", text(freqs),
               " must be [D / 2] for keys ", text(keys));
    const int Hkv = keys.shape(1), D = keys.shape(3);
    PK_REQUIRE(k.shape(2) == Hkv * D && q.shape(2) > 0 && q.shape(2) % (Hkv * D) == 0, "cached attention: q ", text(q),
            " must be [B, T, H * D] and k ", text(k), ", v ", text(v), " [B, T, Hkv * D] for keys ", text(keys),
            " with Hkv dividing H");
    const bool norms = q_norm_.ctx && k_norm_.ctx;
    std::vector<mx::array> in{q, k, v, keys, values, freqs};
    if (norms)
      for (auto n : {q_norm_, k_norm_}) {
        in.push_back(f32(get(n), s));
        PK_REQUIRE(in.back().ndim() == 1 && in.back().shape(0) == D, "cached attention: a norm weight ", text(in.back()),
                " must be [D] for keys ", text(keys));
      }
    const auto cache = use.shape(keys);
    auto out = mx::array::make_arrays({q.shape(), cache, cache}, {mx::float32, mx::float32, mx::float32},
                                      std::make_shared<CachedAttentionKernel>(s, use, How{scale, eps, traditional, norms}), in);
    put(res, out[0]);
    put(keys_res, out[1]);
    put(values_res, out[2]);
  });
}

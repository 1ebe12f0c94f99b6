// The vocabulary is cut into chunks; a task decodes a chunk of the head and multiplies it with panels of rows, and the
// logits are reduced at once. With statistics alone tasks are chunks: each part of the head is decoded once. Where
// rows of the head are summed, tasks are blocks of rows that pass over the whole head.
#include "head.h"

namespace pk {
namespace {

constexpr int STRETCH = 192; // summed at a time: halves the rounding error of long sums
constexpr int ROWS = 192;    // rows of a task that sums rows of the head

double dot64(const float* a, const float* b, int n) {
  double s = 0;
  for (int i = 0; i < n; i++) s += double(a[i]) * double(b[i]);
  return s;
}

// The chunk as floats [rows_of(c), D], of this thread.
const float* decode(const HeadProblem& p, int c) {
  const int n = p.rows_of(c), from = c * p.chunk();
  float* dst = scratch(0, size_t(p.chunk()) * size_t(p.D()) + 64);
  simd().rows(p.w, from, from + n, dst, p.D());
  return dst;
}
// One token's row.
const float* decode_row(const HeadProblem& p, int v) {
  float* dst = scratch(4, size_t(p.D()) + 64);
  simd().rows(p.w, v, v + 1, dst, p.D());
  return dst;
}

void pack_hidden(const HeadProblem& p, int first, int rows, float* dst) {
  const Simd& k = simd();
  k.pack(p.hidden + size_t(first) * size_t(p.D()), p.D(), 1, rows, p.D(), k.nr, 1.f, dst);
}

// t[v, ld] for nr rows of hidden in one panel.
void logits(const HeadProblem& p, int n, const float* chunk, const float* panel, float* t, int ld) {
  const Simd& k = simd();
  for (int d = 0; d < p.D(); d += STRETCH)
    k.strip(n, k.nr, std::min(STRETCH, p.D() - d), chunk + d, p.D(), panel + size_t(d) * size_t(k.nr), t, ld, d > 0);
}

std::vector<RowStats> few_rows(const HeadProblem& p, const int32_t* labels) {
  const size_t V = size_t(p.V());
  thread_local Scratch room;
  float* t = room.get(V * size_t(p.N));
  const Job job{p.w, Side::Inputs, p.hidden, p.D(), t, p.V(), false, {}};
  multiply(&job, 1, p.N);
  std::vector<RowStats> s(size_t(p.N));
  parallel(size_t(p.N), [&](size_t r) {
    simd().row_lse(t + r * V, p.V(), &s[r].max, &s[r].top, &s[r].sum);
    if (labels && labels[r] >= 0 && labels[r] < p.V()) s[r].label = t[r * V + size_t(labels[r])];
  });
  return s;
}

} // namespace

ChunkStats chunk_stats(const HeadProblem& p, const int32_t* labels) {
  const Simd& k = simd();
  const int nr = k.nr, panels = ceil_div(p.N, nr), chunks = p.chunks();
  ChunkStats s;
  s.stride = panels * nr;
  s.max.resize(size_t(chunks) * size_t(s.stride));
  s.top.resize(s.max.size());
  s.sum.resize(s.max.size());
  s.label.resize(size_t(s.stride));
  const size_t panel = size_t(nr) * size_t(p.D());
  Scratch hidden(size_t(panels) * panel);
  parallel(size_t(panels), [&](size_t j) {
    pack_hidden(p, int(j) * nr, std::min(nr, p.N - int(j) * nr), hidden.get(0) + j * panel);
  });
  parallel(size_t(chunks), [&](size_t c) {
    const int n = p.rows_of(int(c)), v0 = int(c) * p.chunk();
    const float* chunk = decode(p, int(c));
    float* t = scratch(1, size_t(n) * size_t(nr));
    for (int j = 0; j < panels; j++) {
      logits(p, n, chunk, hidden.get(0) + size_t(j) * panel, t, nr);
      const size_t at = c * size_t(s.stride) + size_t(j) * size_t(nr);
      k.column_lse(t, nr, n, nr, &s.max[at], &s.top[at], &s.sum[at]);
      if (!labels) continue;
      for (int r = j * nr; r < std::min(p.N, (j + 1) * nr); r++)
        if (const int v = labels[r] - v0; labels[r] >= v0 && v < n) s.label[size_t(r)] = t[v * nr + r - j * nr];
    }
  });
  return s;
}

void divergences(const HeadProblem& p, const HeadProblem& q, float* kl) {
  const Simd& k = simd();
  const int nr = k.nr, panels = ceil_div(p.N, nr), chunks = p.chunks();
  const size_t stride = size_t(panels) * size_t(nr), panel = size_t(nr) * size_t(p.D());
  // of each chunk: largest logits of both, and three sums
  std::vector<float> max(2 * size_t(chunks) * stride);
  std::vector<double> sums(3 * size_t(chunks) * stride);
  Scratch hidden(2 * size_t(panels) * panel);
  float *of_p = hidden.get(0), *of_q = of_p + size_t(panels) * panel;
  parallel(size_t(panels), [&](size_t j) {
    const int first = int(j) * nr, rows = std::min(nr, p.N - first);
    pack_hidden(p, first, rows, of_p + j * panel);
    pack_hidden(q, first, rows, of_q + j * panel);
  });
  parallel(size_t(chunks), [&](size_t c) {
    const int n = p.rows_of(int(c));
    const float* chunk = decode(p, int(c));
    float *x = scratch(1, 2 * size_t(n) * size_t(nr)), *y = x + size_t(n) * size_t(nr);
    for (size_t j = 0; j < size_t(panels); j++) {
      logits(p, n, chunk, of_p + j * panel, x, nr);
      logits(p, n, chunk, of_q + j * panel, y, nr);
      const size_t at = c * size_t(panels) + j;
      float* m = &max[2 * at * size_t(nr)];
      k.column_cross(x, y, nr, n, nr, m, m + nr, &sums[3 * at * size_t(nr)]);
    }
  });
  for (int r = 0; r < p.N; r++) {
    const size_t j = size_t(r / nr), i = size_t(r % nr), w = size_t(nr);
    auto m = [&](int c, size_t side) { return double(max[2 * (size_t(c) * size_t(panels) + j) * w + side * w + i]); };
    double mx = m(0, 0), my = m(0, 1), of_x = 0, of_y = 0, cross = 0;
    for (int c = 1; c < chunks; c++) mx = std::max(mx, m(c, 0)), my = std::max(my, m(c, 1));
    for (int c = 0; c < chunks; c++) {
      const double* s = &sums[3 * (size_t(c) * size_t(panels) + j) * w + i];
      const double by = std::exp(m(c, 0) - mx);
      of_x += s[0] * by;
      of_y += s[w] * std::exp(m(c, 1) - my);
      cross += s[2 * w] * by;
    }
    kl[r] = float(cross / of_x + ((my - mx) + std::log(of_y / of_x)));
  }
}

RowStats ChunkStats::join(const HeadProblem& p, int r) const {
  const size_t step = size_t(stride), row = size_t(r);
  RowStats j{max[row], top[row], 0, label[row]};
  for (int c = 1; c < p.chunks(); c++)
    if (const size_t at = size_t(c) * step + row; max[at] > j.max) j.max = max[at], j.top = c * p.chunk() + top[at];
  for (int c = 0; c < p.chunks(); c++) {
    const size_t at = size_t(c) * step + row;
    j.sum += sum[at] * std::exp(double(max[at]) - j.max); // a NaN anywhere ends up here
  }
  return j;
}

std::vector<RowStats> row_stats(const HeadProblem& p, const int32_t* labels) {
  if (p.N <= simd().few) return few_rows(p, labels);
  const ChunkStats s = chunk_stats(p, labels);
  std::vector<RowStats> rows;
  for (int r = 0; r < p.N; r++) rows.push_back(s.join(p, r));
  return rows;
}

float negative_log_likelihood(const HeadProblem& p, int row, int32_t label, const RowStats& s) {
  if (label < 0 || label >= p.V()) return std::numeric_limits<float>::quiet_NaN();
  auto exact = [&](int v) { return dot64(p.hidden + size_t(row) * size_t(p.D()), decode_row(p, v), p.D()); };
  const double t = exact(label);
  double z = s.sum;
  if (s.top != label) z += std::exp(exact(s.top) - s.max) - 1;
  z += std::exp(t - s.max) - std::exp(double(s.label) - s.max);
  return float(std::log(z) + (s.max - t));
}

void mean_of_head(const HeadProblem& p, int32_t* labels, const Pick* pick, const float* scale, RowStats* stats,
                  float* mean) {
  if (p.N == 0) return;
  const Simd& k = simd();
  const int nr = k.nr, D = p.D();
  const size_t panel = size_t(nr) * size_t(D);
  // As many blocks as there are threads, or some times as many: then no thread waits for the last one long.
  const int blocks = round_up(ceil_div(p.N, ROWS), threads()), block = round_up(ceil_div(p.N, blocks), nr);
  parallel(size_t(ceil_div(p.N, block)), [&](size_t b) {
    const int r0 = int(b) * block, rows = std::min(block, p.N - r0), width = round_up(rows, nr);
    const size_t w = size_t(width);
    float *hidden = scratch(2, w * size_t(D)), *t = scratch(1, size_t(p.chunk()) * w);
    float *max = scratch(3, 3 * w), *shrink = max + w, *label = shrink + w;
    std::vector<int32_t> place(w), top(w);
    std::vector<double> part(w), sum(w);
    float* out = mean + size_t(r0) * size_t(D);
    pack_hidden(p, r0, rows, hidden);
    std::fill_n(max, w, -std::numeric_limits<float>::infinity());
    std::fill_n(label, w, 0.f);
    for (int c = 0; c < p.chunks(); c++) {
      const int n = p.rows_of(c), v0 = c * p.chunk();
      const float* chunk = decode(p, c);
      for (int j = 0; j < width; j += nr) logits(p, n, chunk, hidden + size_t(j / nr) * panel, t + j, width);
      for (int i = 0; i < rows; i++) {
        if (pick && pick->chunk[size_t(r0 + i)] == c) {
          double left = pick->rest[size_t(r0 + i)];
          int v = 0;
          while (v < n - 1 && (left -= std::exp(double(t[v * width + i]) - pick->max[size_t(r0 + i)])) >= 0) v++;
          labels[r0 + i] = v0 + v;
        }
        if (!labels) continue;
        if (const int v = labels[r0 + i] - v0; labels[r0 + i] >= v0 && v < n) label[i] = t[v * width + i];
      }
      std::vector<float> before(max, max + w);
      k.column_exp(t, width, n, width, max, place.data(), part.data(), shrink);
      for (int i = 0; i < rows; i++) {
        const size_t at = size_t(i);
        if (place[at] >= 0) {
          sum[at] *= std::exp(double(before[at]) - max[i]);
          top[at] = v0 + place[at];
          if (c > 0) k.scale_rows(out + at * size_t(D), D, 1, D, shrink + i);
        }
        sum[at] += part[at];
      }
      k.gemm(rows, D, n, {t, width, k.mr}, {chunk, D, k.nr}, false, out, D, c > 0);
    }
    for (int i = 0; i < rows && stats; i++) stats[r0 + i] = {max[i], top[size_t(i)], sum[size_t(i)], label[i]};
    for (int i = 0; i < rows; i++) {
      float* y = out + size_t(i) * size_t(D);
      const float by = float(1 / sum[size_t(i)]), all = scale ? scale[r0 + i] : 1;
      const int32_t v = labels ? labels[r0 + i] : 0;
      if (labels && (v < 0 || v >= p.V())) {
        std::fill_n(y, D, std::numeric_limits<float>::quiet_NaN());
      } else {
        const float* less = labels ? decode_row(p, v) : nullptr;
        for (int d = 0; d < D; d++) y[d] = (y[d] * by - (less ? less[d] : 0)) * all;
      }
    }
  });
}

Matrix prepare_head(const MatrixLayout& l, const mx::array* a, mx::cpu::CommandEncoder& enc) {
  Side side = Side::Inputs;
  if (l.kind) return prepare(l, a, enc, side);
  const auto rows = dense(a[0], enc);
  return prepare(l, &rows, enc, side);
}

void check_head(const mx::array& hidden, const MatrixLayout& l, const mx::array* head, const char* what) {
  const auto [V, D] = shape_of(l, head, what);
  PK_REQUIRE(hidden.ndim() == 2 && hidden.shape(1) == D, what, ": hidden ", text(hidden), " must be [N, D] and head [", V,
          ", ", D, "] [V, D]");
  PK_REQUIRE(V > 0 && D > 0, what, ": head [", V, ", ", D, "] is empty");
}

void push_head(std::vector<mx::array>& in, const mlx_array* arrays, size_t count, const MatrixLayout& l,
               const char* what) {
  PK_REQUIRE(count == l.arrays(), what, ": ", count, " arrays for a head of ", l.arrays());
  for (size_t i = 0; i < count; i++) in.push_back(get(arrays[i]));
}

} // namespace pk

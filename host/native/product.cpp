// How products are cut into tasks.
//
// Few rows of x: stretches of the weight, decoded in registers. Many: blocks of columns of y; a task decodes its part
// of the weight into panels that stay in the second cache while the rows of x pass by.
#include "product.h"

#include "pool.h"

namespace pk {
namespace {

constexpr int DEPTH = 640;          // longest stretch of the inner dimension summed at a time
constexpr size_t PANELS = 512 << 10; // bytes of panels a task holds
constexpr double WAKE = 2e5;        // multiplications below which waking a thread costs more than it brings

struct Task {
  uint32_t job;
  int from, to; // columns of y
  int first, last; // rows
};

void finish(const Job& j, const Task& t) {
  const Finish& f = j.finish;
  if (!f.any()) return;
  for (int m = t.first; m < t.last; m++) {
    float* y = j.y + m * j.ldy;
    const float* r = f.residual ? f.residual + m * f.ld : nullptr;
    if (f.gain)
      for (int c = t.from; c < t.to; c++) y[c] *= f.gain[c];
    if (f.bias)
      for (int c = t.from; c < t.to; c++) y[c] += f.bias[c];
    if (r)
      for (int c = t.from; c < t.to; c++) y[c] += r[c];
  }
}

// Runs tasks in parallel where they are worth it.
template <class F>
void run(const std::vector<Task>& tasks, double work, F&& task) {
  if (work < WAKE)
    for (const Task& t : tasks) task(t);
  else
    parallel(tasks.size(), [&](size_t i) { task(tasks[i]); });
}

// ---- few rows
void few_rows(const Job* jobs, size_t count, int M) {
  const Simd& f = simd();
  // inputs in the order that 4-bit weights want, once for all jobs that share them
  thread_local Scratch room;
  thread_local std::vector<const float*> arranged;
  arranged.assign(count, nullptr);
  size_t size = 0;
  for (size_t i = 0; i < count; i++)
    if (jobs[i].side == Side::Inputs) size += size_t(M) * jobs[i].w.K;
  float* next = room.get(size);
  double work = 0, weights = 0;
  for (size_t i = 0; i < count; i++) {
    const Job& j = jobs[i];
    weights += double(j.w.N) * j.w.K;
    if (j.side != Side::Inputs) continue;
    for (size_t o = 0; o < i; o++)
      if (jobs[o].side == Side::Inputs && jobs[o].x == j.x && jobs[o].ldx == j.ldx && jobs[o].w.K == j.w.K &&
          (jobs[o].w.kind == 4) == (j.w.kind == 4))
        arranged[i] = arranged[o];
    if (arranged[i]) continue;
    f.arrange(j.w.kind, j.x, j.ldx, M, j.w.K, next);
    arranged[i] = next;
    next += size_t(M) * j.w.K;
  }
  work = weights * M;
  const int parts = work < WAKE ? 1 : 4 * threads();
  thread_local std::vector<Task> tasks;
  tasks.clear();
  for (size_t i = 0; i < count; i++) {
    const Job& j = jobs[i];
    const int columns = j.columns(), unit = j.side == Side::Inputs ? 4 : 128;
    const double share = weights / parts / std::max(j.inner(), 1);
    const int step = std::max(unit, int(share) / unit * unit);
    for (int c = 0; c < columns; c += step) tasks.push_back({uint32_t(i), c, std::min(columns, c + step), 0, M});
  }
  const float* const* inputs = arranged.data();
  run(tasks, work, [&](const Task& t) {
    const Job& j = jobs[t.job];
    if (j.side == Side::Inputs) f.dots(j.w, t.from, t.to, inputs[t.job], M, j.y, j.ldy, j.add);
    else f.sums(j.w, t.from, t.to, j.x, j.ldx, M, j.y, j.ldy, j.add);
    finish(j, t);
  });
}

// ---- many rows
void block(const Job& j, const Task& t) {
  const Simd& f = simd();
  const int inner = j.inner(), stretches = ceil_div(inner, DEPTH), depth = round_up(ceil_div(inner, stretches), 64);
  const int panels = ceil_div(t.to - t.from, f.nr);
  const size_t panel = size_t(f.nr) * depth;
  float* b = scratch(0, panels * panel);
  for (int k = 0; k < inner; k += depth) {
    const int end = std::min(inner, k + depth), n = end - k;
    for (int p = 0; p < panels; p++) {
      const int c = t.from + p * f.nr, width = std::min(f.nr, t.to - c);
      if (j.side == Side::Inputs) f.panel_of_rows(j.w, c, width, k, end, b + p * panel);
      else f.panel_of_columns(j.w, c, width, k, end, b + p * panel);
    }
    for (int m = t.first; m < t.last; m += f.mr)
      for (int p = 0; p < panels; p++) {
        const int c = t.from + p * f.nr;
        f.strip(std::min(f.mr, t.last - m), std::min(f.nr, t.to - c), n, j.x + m * j.ldx + k, j.ldx, b + p * panel,
                j.y + m * j.ldy + c, j.ldy, j.add || k > 0);
      }
  }
  if (inner == 0 && !j.add)
    for (int m = t.first; m < t.last; m++) std::fill(j.y + m * j.ldy + t.from, j.y + m * j.ldy + t.to, 0.f);
  finish(j, t);
}

void many_rows(const Job* jobs, size_t count, int M) {
  const Simd& f = simd();
  double work = 0;
  for (size_t i = 0; i < count; i++) work += double(jobs[i].w.N) * jobs[i].w.K * M;
  const int wanted = work < WAKE ? 1 : 3 * threads();
  std::vector<Task> tasks;
  for (size_t i = 0; i < count; i++) {
    const Job& j = jobs[i];
    const int columns = j.columns(), all = ceil_div(columns, f.nr);
    const int depth = std::min(std::max(j.inner(), 1), DEPTH);
    const int most = std::max(1, int(PANELS / (sizeof(float) * size_t(f.nr) * depth)));
    const int own = std::max(1, int(wanted * (double(j.w.N) * j.w.K * M / work) + .5)); // its share of the tasks
    const int panels = std::min(most, std::max(1, all / own)), across = ceil_div(all, panels);
    // Rows are cut where columns do not give enough tasks; each piece decodes the weight again, so they stay long.
    const int down = std::clamp(ceil_div(own, across), 1, std::max(1, M / 256));
    const int rows = round_up(ceil_div(M, down), f.mr);
    for (int m = 0; m < M; m += rows)
      for (int c = 0; c < columns; c += panels * f.nr)
        tasks.push_back({uint32_t(i), c, std::min(columns, c + panels * f.nr), m, std::min(M, m + rows)});
  }
  run(tasks, work, [&](const Task& t) { block(jobs[t.job], t); });
}

} // namespace

void multiply(const Job* jobs, size_t count, int M) {
  if (M <= 0) return;
  M <= simd().few ? few_rows(jobs, count, M) : many_rows(jobs, count, M);
}

void project(const Projection* list, size_t count, const float* x, ptrdiff_t ldx, int M) {
  size_t thin = 0; // width of all that lies between two products
  for (size_t i = 0; i < count; i++)
    for (size_t p = 0; p < list[i].pair_count; p++) {
      const Pair& pair = list[i].pairs[p];
      thin += size_t(pair.b_side == Side::Inputs ? pair.b.N : pair.b.K);
    }
  const int rows = thin == 0 ? M : std::clamp(int((256 << 10) / (sizeof(float) * thin)), 96, 1024);
  thread_local Scratch room;
  float* t = thin ? room.get(thin * size_t(std::min(rows, M))) : nullptr;
  thread_local std::vector<Job> first, second;
  for (int m = 0; m < M; m += rows) {
    const int n = std::min(rows, M - m);
    const float* xm = x + m * ldx;
    first.clear(), second.clear();
    float* next = t;
    size_t most = 0;
    for (size_t i = 0; i < count; i++) most = std::max(most, list[i].pair_count);
    for (size_t i = 0; i < count; i++) {
      const Projection& l = list[i];
      Finish done = l.finish;
      if (done.residual) done.residual += m * done.ld;
      if (l.base) first.push_back({*l.base, l.side, xm, ldx, l.y + m * l.ldy, l.ldy, false, l.pair_count ? Finish{} : done});
      for (size_t p = 0; p < l.pair_count; p++) {
        const Pair& pair = l.pairs[p];
        const int r = pair.b_side == Side::Inputs ? pair.b.N : pair.b.K;
        first.push_back({pair.b, pair.b_side, xm, ldx, next, r, false, {}});
        next += size_t(r) * n;
      }
    }
    multiply(first.data(), first.size(), n);
    // Pairs of one projection add into the same y, one after the other.
    for (size_t p = 0; p < most; p++) {
      second.clear();
      float* from = t;
      for (size_t i = 0; i < count; i++) {
        const Projection& l = list[i];
        for (size_t q = 0; q < l.pair_count; q++) {
          const Pair& pair = l.pairs[q];
          const int r = pair.b_side == Side::Inputs ? pair.b.N : pair.b.K;
          Finish done = q + 1 == l.pair_count ? l.finish : Finish{};
          if (done.residual) done.residual += m * done.ld;
          if (q == p) second.push_back({pair.a, pair.a_side, from, r, l.y + m * l.ldy, l.ldy, l.base || q > 0, done});
          from += size_t(r) * n;
        }
      }
      multiply(second.data(), second.size(), n);
    }
  }
}

} // namespace pk

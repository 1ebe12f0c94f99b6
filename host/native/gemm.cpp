// Matrix products of MLX on the pool of the kernels.
//
// The threads of a BLAS wait for each other by spinning, at every panel of every product. Where another
// program holds a core, each wait lasts until the scheduler comes round: products of a millisecond take
// fifty. So the BLAS runs on one thread, and products are cut into blocks of the result which the pool
// hands out; there a thread that is preempted delays its own block only.
//
// MLX finds these functions before those of the BLAS because a program's symbols come first.
#include <dlfcn.h>

#include <algorithm>

#include "plastic.h"

namespace {

// cblas.h's values.
enum Order { RowMajor = 101 };
enum Transpose { NoTrans = 111 };

template <class T>
using Gemm = void (*)(int, int, int, int, int, int, T, const T*, int, const T*, int, T, T*, int);

// The BLAS's own function: the next of that name.
template <class T>
Gemm<T> next(const char* name) {
  void* f = dlsym(RTLD_NEXT, name);
  if (!f) {
    fprintf(stderr, "plastic-host: no BLAS with %s is loaded; run `make setup` again\n", name);
    abort();
  }
  return reinterpret_cast<Gemm<T>>(f);
}

struct Grid {
  int rows, cols; // blocks down and across
};

// Least size of a block and what its edges are multiples of: whole register tiles of every kernel.
constexpr int EDGE = 48;
// Below so many multiplications the hand-over costs more than it gains.
constexpr double SMALL = 1 << 19;

// As many blocks as there are threads, or a few times as many where they are large, in the shape that
// copies least: a block packs its rows of A and its columns of B.
Grid grid(int m, int n, int k) {
  int threads = pk::threads();
  double work = double(m) * n * k;
  if (threads < 2 || work < SMALL) return {1, 1};
  int most_rows = std::max(1, m / EDGE), most_cols = std::max(1, n / EDGE);
  // Blocks above 16 million multiplications last long enough to be worth sharing out more evenly.
  int blocks = threads * std::clamp(int(work / (threads * 16e6)), 1, 3);
  Grid best = {1, 1};
  double least = 0;
  for (int r = 1; r <= std::min(blocks, most_rows); r++) {
    int c = std::min((blocks + r - 1) / r, most_cols);
    // Time of the slowest thread in units of one multiplication, and the packing of all.
    double rounds = double((r * c + threads - 1) / threads);
    double cost = rounds * work / (r * c) + 8.0 * rounds * (double(m) / r + double(n) / c) * k;
    if (least == 0 || cost < least) least = cost, best = {r, c};
  }
  return best;
}

// Where block i of `parts` begins in `n`, on a multiple of EDGE.
int edge(int n, int parts, int i) {
  if (i == parts) return n;
  return int(int64_t(n) * i / parts) / EDGE * EDGE;
}

template <class T>
void product(Gemm<T> real, int order, int ta, int tb, int m, int n, int k, T alpha, const T* a, int lda, const T* b,
             int ldb, T beta, T* c, int ldc) {
  Grid g = order == RowMajor ? grid(m, n, k) : Grid{1, 1};
  if (g.rows * g.cols == 1) return real(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  pk::parallel(size_t(g.rows) * g.cols, [&](size_t block) {
    int i = int(block) / g.cols, j = int(block) % g.cols;
    int r = edge(m, g.rows, i), rows = edge(m, g.rows, i + 1) - r;
    int q = edge(n, g.cols, j), cols = edge(n, g.cols, j + 1) - q;
    if (!rows || !cols) return;
    const T* ab = a + (ta == NoTrans ? int64_t(r) * lda : r);
    const T* bb = b + (tb == NoTrans ? q : int64_t(q) * ldb);
    real(order, ta, tb, rows, cols, k, alpha, ab, lda, bb, ldb, beta, c + int64_t(r) * ldc + q, ldc);
  });
}

} // namespace

#define PK_EXPORT extern "C" __attribute__((visibility("default"), used))

PK_EXPORT void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                           const float* b, int ldb, float beta, float* c, int ldc) {
  static const auto real = next<float>("cblas_sgemm");
  product(real, order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

PK_EXPORT void cblas_dgemm(int order, int ta, int tb, int m, int n, int k, double alpha, const double* a, int lda,
                           const double* b, int ldb, double beta, double* c, int ldc) {
  static const auto real = next<double>("cblas_dgemm");
  product(real, order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Whether MLX's products come here: what the dynamic linker answers when it is asked as MLX asks.
extern "C" int pk_gemm_in_use(void) {
  return dlsym(RTLD_DEFAULT, "cblas_sgemm") == reinterpret_cast<void*>(&cblas_sgemm);
}

// Small single-threaded matrix products on register tiles of MR x NR.
//
// Every element of the result is the same chain of multiply-adds in the order of p, whatever tile it
// falls into: results do not depend on how a caller splits m and n over threads or blocks.

template <int M, int N> // M rows, N vectors
static void tile(int k, const float* a, ptrdiff_t lda, const float* b, ptrdiff_t ldb, float* c, ptrdiff_t ldc, int cols,
                 bool add) {
  vf acc[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) acc[i][j] = vf{};
  for (int p = 0; p < k; p++) {
    vf x[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) x[j] = load(b + j * VL);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
      for (int j = 0; j < N; j++) acc[i][j] += splat(a[i]) * x[j];
    a += lda;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) {
      float* q = c + i * ldc + j * VL;
      int left = cols - j * VL;
      if (left >= VL) store(q, add ? acc[i][j] + load(q) : acc[i][j]);
      else if (left > 0) store_part(q, add ? acc[i][j] + load_part(q, left) : acc[i][j], left);
    }
  }
}

typedef void (*TileFn)(int, const float*, ptrdiff_t, const float*, ptrdiff_t, float*, ptrdiff_t, int, bool);
static const TileFn tiles[2][13] = {
    {nullptr, tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>,
#if PK_MR > 6
     tile<7, 1>, tile<8, 1>, tile<9, 1>, tile<10, 1>, tile<11, 1>, tile<12, 1>
#endif
    },
    {nullptr, tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>,
#if PK_MR > 6
     tile<7, 2>, tile<8, 2>, tile<9, 2>, tile<10, 2>, tile<11, 2>, tile<12, 2>
#endif
    }};

static void gemm(int m, int n, int k, Panels a, Panels b, bool b_padded, float* c, ptrdiff_t ldc, bool add) {
  constexpr int KB = 192; // summed at a time: halves the rounding error of long sums, and `part` stays small
  for (int j = 0; j < n; j += NR) {
    int cols = n - j < NR ? n - j : NR;
    const TileFn* fn = tiles[cols > VL];
    const float* bj = b.data + (j / NR) * b.panel;
    const bool direct = cols == NR || cols == VL || b_padded;
    for (int p = 0; p < k; p += KB) {
      const int kb = k - p < KB ? k - p : KB;
      float part[KB * NR];
      const float* bp = bj + p * b.row;
      if (!direct) { // its last panel must not be read to full width
        for (int q = 0; q < kb; q++) {
          memset(part + q * NR, 0, sizeof(float) * NR);
          memcpy(part + q * NR, bp + q * b.row, sizeof(float) * size_t(cols));
        }
        bp = part;
      }
      for (int i = 0; i < m; i += MR)
        fn[m - i < MR ? m - i : MR](kb, a.data + (i / MR) * a.panel + p * a.row, a.row, bp, direct ? b.row : NR,
                                    c + i * ldc + j, ldc, cols, add || p > 0);
    }
  }
}

// Reads 8 rows at a time so that both sides stay within few cache lines.
static void pack(const float* src, ptrdiff_t ld, ptrdiff_t step, int rows, int k, int w, float scale, float* dst) {
  for (int r = 0; r < rows; r += w, dst += size_t(k) * w) {
    int n = rows - r < w ? rows - r : w;
    for (int i = 0; i < n; i++) {
      const float* s = src + (r + i) * ld;
      for (int p = 0; p < k; p++) dst[size_t(p) * w + i] = s[p * step] * scale;
    }
    for (int i = n; i < w; i++)
      for (int p = 0; p < k; p++) dst[size_t(p) * w + i] = 0;
  }
}

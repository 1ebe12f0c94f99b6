// The innermost loops, one table per instruction set.
//
// `isa/table.cpp` is compiled several times with different -m flags, each time into its own
// namespace; `simd()` picks one table at run time. So one binary runs on any machine of its
// architecture, without -march=native. Nothing in `isa/` may include a C++ library header: an inline
// function compiled there for AVX-512 could be the copy the linker keeps for everybody.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace pk {

// A matrix operand laid out in panels: element (p, i) of panel j lies at
// data[j * panel + p * row + i], where p runs over the inner (summed) dimension.
// Packed: row = panel width, panel = K * width. A plain row-major matrix: row = its leading
// dimension, panel = panel width.
struct Panels {
  const float* data;
  ptrdiff_t row, panel;
};

// ---- weights as they are stored
enum Number : int32_t { F32, F16, BF16, E8M0, E4M3 };
// How a weight is stored: affine codes of so many bits (2, 3, 4, 5, 6, 8), floats, or small floats with a scale.
enum : int32_t { KIND_F32 = 32, KIND_F16 = 16, KIND_BF16 = 17, KIND_MXFP4 = 40, KIND_MXFP8 = 41, KIND_NVFP4 = 42 };

// W [N, K], rows one after the other. An affine weight is scale * code + bias; one scale and one bias, [N, K / group]
// of type `number`, serve `group` neighbours of a row. Small floats have no bias, floats neither; their group is K.
struct Matrix {
  const void *codes, *scales, *biases;
  int N, K, kind, group;
  Number number;

  int bits() const {
    return kind == KIND_BF16 ? 16 : kind == KIND_MXFP8 ? 8 : kind >= KIND_MXFP4 ? 4 : kind;
  }
  size_t row_bytes() const { return size_t(K) * size_t(bits()) / 8; }
};

struct Simd {
  const char* name;
  int mr, nr; // height and width of the register tile of `gemm`; nr is a multiple of the vector length

  // ---- gemm.inl
  // c[m, n] (+)= sum_p a(p, m) b(p, n). `a` in panels of mr, `b` in panels of nr. `b_padded`: the last
  // panel of b may be read to its full width.
  void (*gemm)(int m, int n, int k, Panels a, Panels b, bool b_padded, float* c, ptrdiff_t ldc, bool add);
  // Transposes `rows` rows of length k into panels of width w (zero padded): dst[j][p][i] = src[j*w+i][p].
  void (*pack)(const float* src, ptrdiff_t ld, ptrdiff_t step, int rows, int k, int w, float scale, float* dst);

  // ---- product.inl: products with a stored weight
  int few; // most rows of x that `dots` and `sums` take
  // The order in which `dots` wants the inputs of each row of x [M, K]; null: as they are.
  void (*arrange)(int kind, const float* x, ptrdiff_t ldx, int M, int K, float* dst);
  // y[m, n] (+)= sum_k x[m, k] W[n, k] for n0 <= n < n1 and m < M <= few. x [M, K] as arranged.
  void (*dots)(const Matrix& w, int n0, int n1, const float* x, int M, float* y, ptrdiff_t ldy, bool add);
  // y[m, k] (+)= sum_n x[m, n] W[n, k] for k0 <= k < k1 and m < M <= few; k0 is a multiple of 128.
  void (*sums)(const Matrix& w, int k0, int k1, const float* x, ptrdiff_t ldx, int M, float* y, ptrdiff_t ldy, bool add);
  // dst[k - k0][nr] = W[n0 + i, k] for i < count <= nr, zeros beyond; k0 and k1 are multiples of 32 or K.
  void (*panel_of_rows)(const Matrix& w, int n0, int count, int k0, int k1, float* dst);
  // dst[n - n0][nr] = W[n, k0 + i] for i < count <= nr, zeros beyond; k0 is a multiple of nr.
  void (*panel_of_columns)(const Matrix& w, int k0, int count, int n0, int n1, float* dst);
  // dst[n - n0][ld] = W[n, :] for n0 <= n < n1, ld >= K. May write up to a vector beyond the last row.
  void (*rows)(const Matrix& w, int n0, int n1, float* dst, ptrdiff_t ld);
  // y[m, j] (+)= sum_p x[m, p] b[p][j] for j < cols <= nr; b [K][nr].
  void (*strip)(int M, int cols, int K, const float* x, ptrdiff_t ldx, const float* b, float* y, ptrdiff_t ldy, bool add);

  // ---- elementwise.inl
  void (*swiglu)(const float* g, const float* u, float* y, size_t n);
  void (*swiglu_grad)(const float* g, const float* u, const float* dy, float* dg, float* du, size_t n);

  // ---- columns.inl: softmax along the columns of t[n, w] (row stride ld, w a multiple of the vector length)
  // Largest element, its row, and sum of exp(t - max) of each column; sums of at most 64 terms in float32.
  void (*column_lse)(const float* t, ptrdiff_t ld, int n, int w, float* max, int32_t* top, double* sum);
  // The same while t becomes exp(t - max), max carried on from block to block; top is -1 where it stays what it was.
  // shrink[c] is what earlier results of column c must be multiplied with.
  void (*column_exp)(float* t, ptrdiff_t ld, int n, int w, float* max, int32_t* top, double* sum, float* shrink);
  // Per column: largest x and y, and sums[0..3][w] of exp(x - max), exp(y - max) and exp(x - max) (x - y).
  void (*column_cross)(const float* x, const float* y, ptrdiff_t ld, int n, int w, float* max_x, float* max_y,
                       double* sums);
  // Largest of x[n], its place, and sum of exp(x - max).
  void (*row_lse)(const float* x, int n, float* max, int32_t* top, double* sum);

  // ---- attention.inl (described there)
  void (*softmax_block)(float* t, ptrdiff_t ld, int n, int w, const int32_t* visible, float* max, float* sum,
                        float* shrink);
  void (*scale_rows)(float* x, ptrdiff_t ld, int rows, int n, const float* by);
  void (*softmax_grad_columns)(float* s, float* dp, ptrdiff_t ld, int n, int w, const int32_t* visible,
                               const float* lse, const float* delta);
  void (*softmax_grad_rows)(float* s, float* dp, ptrdiff_t ld, int n, int w, const int32_t* visible, const float* lse,
                            const float* delta);
  float (*dot)(const float* a, const float* b, int n);
  void (*attend)(const float* q, int nq, const float* k, ptrdiff_t ldk, const float* v, ptrdiff_t ldv, int n, int d,
                 float* s, float* max, float* total, float* o);

  // ---- norm.inl (described there)
  void (*rms_norm)(const float* x, const float* w, float* y, int rows, int n, float eps);
  void (*rms_norm_grad)(const float* x, const float* w, const float* dy, float* dx, float* dw, int rows, int n,
                        float eps);
  void (*rope)(const float* x, float* y, const float* cos, const float* sin, int half, bool traditional);
};

// The best table this machine can run, or the one PLASTIC_ISA (scalar, avx2, avx512) or force_isa() names.
const Simd& simd();

} // namespace pk

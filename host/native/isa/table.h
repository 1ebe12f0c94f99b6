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

struct Simd {
  const char* name;
  int mr, nr; // height and width of the register tile of `gemm`; nr is a multiple of the vector length

  // ---- gemm.inl
  // c[m, n] (+)= sum_p a(p, m) b(p, n). `a` in panels of mr, `b` in panels of nr. `b_padded`: the last
  // panel of b may be read to its full width.
  void (*gemm)(int m, int n, int k, Panels a, Panels b, bool b_padded, float* c, ptrdiff_t ldc, bool add);
  // Transposes `rows` rows of length k into panels of width w (zero padded): dst[j][p][i] = src[j*w+i][p].
  void (*pack)(const float* src, ptrdiff_t ld, ptrdiff_t step, int rows, int k, int w, float scale, float* dst);

  // ---- elementwise.inl
  void (*swiglu)(const float* g, const float* u, float* y, size_t n);
  void (*swiglu_grad)(const float* g, const float* u, const float* dy, float* dg, float* du, size_t n);

  // ---- columns.inl: softmax along the columns of t[n, w] (row stride ld, w a multiple of the vector length)
  // Largest element, its row, and sum of exp(t - max) of each column; sums of at most 64 terms in float32.
  void (*column_lse)(const float* t, ptrdiff_t ld, int n, int w, float* max, int32_t* top, double* sum);
  // t = exp(t - lse[column]) * ct[column]
  void (*column_softmax)(float* t, ptrdiff_t ld, int n, int w, const float* lse, const float* ct);

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

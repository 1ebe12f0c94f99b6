// Products of activations with stored weights, and projections made of them. No MLX here: plain memory in, plain
// memory out, on the calling thread and the pool's.
#pragma once
#include <vector>

#include "isa/table.h"

namespace pk {

// Which index of W [N, K] is summed over.
enum class Side : int32_t {
  Inputs, // y [M, N] = x [M, K] W^T
  Rows,   // y [M, K] = x [M, N] W
};

// What is done to an element of y when its sum is complete: y = y * gain[column] + bias[column] + residual[row, column].
// Null: nothing. The residual has y's rows and may be y's own memory only where nothing else is added into y.
struct Finish {
  const float *gain, *bias, *residual;
  ptrdiff_t ld; // of the residual
  bool any() const { return gain || bias || residual; }
};

struct Job {
  Matrix w;
  Side side;
  const float* x;
  ptrdiff_t ldx;
  float* y;
  ptrdiff_t ldy;
  bool add; // to what y holds
  Finish finish;

  int inner() const { return side == Side::Inputs ? w.K : w.N; }
  int columns() const { return side == Side::Inputs ? w.N : w.K; }
};

// All jobs, of M rows each, side by side. An element of a result is the same chain of operations whatever the number
// of threads; it may differ in the last bits between few rows and many.
void multiply(const Job* jobs, size_t count, int M);

// Two thin matrices in a row: x B^T A^T.
struct Pair {
  Matrix b; // [r, K], side Inputs; or, on the way back, A [N, r], side Rows
  Side b_side;
  Matrix a;
  Side a_side;
};

// A projection: y = ((base +) sum of pairs) * gain + bias + residual.
struct Projection {
  const Matrix* base; // null: pairs alone
  Side side;
  const Pair* pairs;
  size_t pair_count;
  Finish finish;
  float* y;
  ptrdiff_t ldy;
};

// Projections that read the same x [M, .]: what is thin between two products stays in cache.
void project(const Projection* list, size_t count, const float* x, ptrdiff_t ldx, int M);

} // namespace pk

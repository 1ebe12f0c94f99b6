// How a projection is handed over from MLX arrays, shared by the primitives that contain one.
#pragma once
#include "plastic.h"
#include "product.h"

namespace pk {

// How one matrix is stored: kind 0 one array of floats, else codes and scales, and biases where it is affine.
// Transposed: what is stored is [columns, rows].
struct MatrixLayout {
  int kind, group;
  bool transposed;
  size_t arrays() const { return kind == 0 ? 1 : kind >= KIND_MXFP4 ? 2 : 3; }
  bool operator==(const MatrixLayout&) const = default;
};

// What follows in a list of arrays: the base's (if any), for each pair those of b and of a, gain, bias.
struct ProjectionLayout {
  bool base, gain, bias;
  MatrixLayout of_base;
  std::vector<std::pair<MatrixLayout, MatrixLayout>> pairs; // b, a
  size_t arrays() const;
  bool operator==(const ProjectionLayout&) const = default;
  // Reads the description that Rust writes; advances `ints`.
  static ProjectionLayout read(const int*& ints);
  // Outputs for inputs of `inner` numbers; throws a message when the arrays do not fit.
  int check(const mx::array* arrays, int inner, const char* what) const;
};

// Rows and columns of a matrix; throws a message when its arrays do not fit together.
std::pair<int, int> shape_of(const MatrixLayout& l, const mx::array* a, const char* what);
// The matrix over evaluated arrays. Where floats are stored as columns, W^T lies there in rows: the sum goes over the
// other index then.
Matrix prepare(const MatrixLayout& l, const mx::array* a, mx::cpu::CommandEncoder& enc, Side& side);

// A projection over evaluated arrays. Owns the pairs that `get` points to.
struct Prepared {
  Matrix base;
  Side base_side = Side::Inputs;
  bool has_base = false;
  std::vector<Pair> pairs;
  const float *gain = nullptr, *bias = nullptr;

  // `back`: y = x W instead of x W^T.
  Prepared(const ProjectionLayout& l, const mx::array* arrays, mx::cpu::CommandEncoder& enc, bool back);
  Projection get(float* y, ptrdiff_t ldy, const float* residual, ptrdiff_t ld) const;
};

} // namespace pk

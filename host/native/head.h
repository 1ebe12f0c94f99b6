// The softmax over a large vocabulary that follows a head, without ever holding the [N, V] logits.
#pragma once
#include <limits>

#include "plastic.h"
#include "product.h"
#include "projection.h"

namespace pk {

// Rows of hidden states [N, K] against a head W [V, K] as it is stored.
struct HeadProblem {
  const float* hidden;
  int N;
  Matrix w;

  int D() const { return w.K; }
  int V() const { return w.N; }
  HeadProblem part(int first, int rows) const { return {hidden + size_t(first) * size_t(D()), rows, w}; }
  // Tokens a task decodes at a time: a part of the second cache, in multiples of every table's mr.
  int chunk() const { return std::min(384, std::max(48, 138240 / std::max(D(), 1) / 12 * 12)); }
  int chunks() const { return ceil_div(V(), chunk()); }
  int rows_of(int c) const { return std::min(chunk(), V() - c * chunk()); }
};

// What is known of the logits of a row: the largest, where it is, the sum of exp(logit - largest), and the label's.
struct RowStats {
  float max = 0;
  int32_t top = 0;
  double sum = 0;
  float label = 0;
};

// The same of each chunk, in the order [chunk][row]; tokens count within the chunk.
struct ChunkStats {
  std::vector<float> max, label; // label: of each row, not of each chunk
  std::vector<int32_t> top;
  std::vector<double> sum;
  int stride;
  RowStats join(const HeadProblem& p, int row) const;
};
// `labels` [N] may be null.
ChunkStats chunk_stats(const HeadProblem& p, const int32_t* labels);

// Statistics of every row; few rows in a way of their own.
std::vector<RowStats> row_stats(const HeadProblem& p, const int32_t* labels);

// -log of the label's probability. Rounding of the logits enters mostly through the label's and the largest one: both
// are replaced by their float64 values. NaN for labels outside the vocabulary.
float negative_log_likelihood(const HeadProblem& p, int row, int32_t label, const RowStats& s);

// Labels that are drawn on the way: row r's is the first token of chunk[r] at which the running sum of
// exp(logit - max) within the chunk exceeds rest[r].
struct Pick {
  std::vector<int> chunk;
  std::vector<double> rest, max;
};

// mean[r] = sum over v of softmax(logits[r])[v] head[v], less head[labels[r]] where there are labels, all times
// scale[r]; in one pass over the head (online softmax, Milakov & Gimelshein 2018). All pointers but
// `mean` may be null; a label outside the vocabulary makes its row NaN. No result depends on the number of threads.
void mean_of_head(const HeadProblem& p, int32_t* labels, const Pick* pick, const float* scale, RowStats* stats,
                  float* mean);

// kl[r] = KL(p | q) of the distributions of row r of both, by logits side by side: their rounding then cancels.
void divergences(const HeadProblem& p, const HeadProblem& q, float* kl);

// ---- from MLX
// The head over evaluated arrays; floats are made row-contiguous.
Matrix prepare_head(const MatrixLayout& l, const mx::array* a, mx::cpu::CommandEncoder& enc);
// Refuses what does not fit: hidden [N, D], head [V, D] in `l.arrays()` arrays.
void check_head(const mx::array& hidden, const MatrixLayout& l, const mx::array* head, const char* what);
// Reads the head's arrays behind `in` from the C surface.
void push_head(std::vector<mx::array>& in, const mlx_array* arrays, size_t count, const MatrixLayout& l,
               const char* what);

// Calls f(part, first row) for blocks of rows: bounds packed copies and statistics.
template <class F>
void by_blocks(const HeadProblem& p, F&& f) {
  constexpr int BLOCK = 4096;
  for (int r = 0; r < p.N; r += BLOCK) f(p.part(r, std::min(BLOCK, p.N - r)), r);
}

} // namespace pk

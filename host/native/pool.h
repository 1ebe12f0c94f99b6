// Threads, scratch memory and the choice of instruction set. No MLX here.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <new>

#include "isa/table.h"

namespace pk {

// ---- threads (pool.cpp)
// fn(i) for every i < chunks, on this thread and the pool's. Chunks are claimed one by one, so they
// need not be equal. A second caller at the same time runs its chunks alone.
void parallel(size_t chunks, const std::function<void(size_t)>& fn);
int threads();

// ---- scratch
// 64-byte aligned floats: a 512-bit load that straddles two cache lines costs double.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(size_t n) { get(n); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(p_, std::align_val_t(64)); }
  float* get(size_t n) { // at least n floats; contents are lost when it grows
    if (n > n_) {
      ::operator delete(p_, std::align_val_t(64));
      p_ = nullptr, n_ = 0;
      p_ = static_cast<float*>(::operator new(n * sizeof(float), std::align_val_t(64)));
      n_ = n;
    }
    return p_;
  }

 private:
  float* p_ = nullptr;
  size_t n_ = 0;
};
// A buffer of this thread, kept between calls; each function uses slots of its own.
float* scratch(int slot, size_t n);

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

} // namespace pk

// The cache of keys and values as MLX arrays, for the primitives that append to it.
#pragma once
#include "plastic.h"

namespace pk {

// Where new positions go.
struct CacheUse {
  std::vector<int> rows, past; // of each sequence, of each row of the cache
  int capacity;

  // Throws a message when T new positions of `rows` do not fit keys and values [R, Hkv, held, D], or their shapes are
  // none; `what` names the caller.
  void check(const mx::array& keys, const mx::array& values, int B, int T, const char* what) const;
  mx::Shape shape(const mx::array& keys) const { return {keys.shape(0), keys.shape(1), capacity, keys.shape(3)}; }
  // Gives the buffers of in[at], in[at + 1] over to out[1], out[2], or copies what is held when they are in use
  // elsewhere or too small. Clears the inputs of all outputs but the one whose inputs `in` is: each holds all of them,
  // and a buffer is given over only by its last holder. They are let go after this evaluation anyway.
  void open(const std::vector<mx::array>& in, size_t at, std::vector<mx::array>& out, mx::cpu::CommandEncoder& enc) const;
};

} // namespace pk

// What the custom MLX primitives share: input checks and the C surface's errors.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

namespace pk {

// ---- MLX
// A row-contiguous form of an evaluated input: itself, or a copy that is made on the stream first and
// lives until the tasks already dispatched are done. Elements of 1, 2 or 4 bytes.
mx::array dense(const mx::array& a, mx::cpu::CommandEncoder& enc);

// Allocates an output in row-major order and announces it.
inline void allocate(mx::array& out, mx::cpu::CommandEncoder& enc) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  enc.set_output_array(out);
}

// A primitive of this library: one CPU kernel, first derivatives only.
class Kernel : public mx::Primitive {
 public:
  Kernel(mx::Stream s, const char* name) : Primitive(s), name_(name) {}
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override { fail("runs on the CPU only"); }
  std::vector<mx::array> vjp(const std::vector<mx::array>&, const std::vector<mx::array>&, const std::vector<int>&,
                             const std::vector<mx::array>&) override {
    fail("has no derivative (first derivatives only)");
  }
  const char* name() const override { return name_; }

 protected:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(std::string(name_).append(" ").append(what));
  }
  const char* name_;
};

// ---- C surface
inline mx::array& get(mlx_array a) {
  if (!a.ctx) throw std::invalid_argument("empty array");
  return *static_cast<mx::array*>(a.ctx);
}
inline mx::Stream get(mlx_stream s) {
  if (!s.ctx) throw std::invalid_argument("empty stream");
  auto st = *static_cast<mx::Stream*>(s.ctx);
  if (st.device != mx::Device(mx::Device::cpu)) throw std::invalid_argument("these kernels run on a CPU stream");
  return st;
}
inline mx::array f32(const mx::array& a, mx::Stream s) {
  return a.dtype() == mx::float32 ? a : mx::astype(a, mx::float32, s);
}
inline std::string text(const mx::Shape& s) {
  std::string r = "[";
  for (size_t i = 0; i < s.size(); i++) r += (i ? ", " : "") + std::to_string(s[i]);
  return r + "]";
}
inline std::string text(const mx::array& a) { return text(a.shape()); }
// Throws a message made of the parts. A macro, so that they are made only then.
#define PK_REQUIRE(ok, ...)              \
  do {                                   \
    if (!(ok)) pk::refuse(__VA_ARGS__);  \
  } while (0)
template <class... T>
[[noreturn]] void refuse(const T&... parts) {
  std::ostringstream s;
  (s << ... << parts);
  throw std::invalid_argument(s.str());
}
inline void put(mlx_array* out, mx::array a) { out->ctx = new mx::array(std::move(a)); }

// Runs f; returns 0, or 1 with the exception's text in err. Nothing is thrown into Rust.
template <class F>
int guarded(char* err, size_t len, F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    if (err && len) snprintf(err, len, "%s", e.what());
  } catch (...) {
    if (err && len) snprintf(err, len, "unknown C++ exception");
  }
  return 1;
}

} // namespace pk

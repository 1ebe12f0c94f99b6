// Threads, instruction set and scratch memory of the kernels.
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "pool.h"

namespace pk {
namespace {

void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return int(std::thread::hardware_concurrency());
}

// What the host found; it knows the limits of containers too. 0 until it says.
std::atomic<int> default_threads{0};

// Persistent workers. The caller works too and waits only for chunks that a worker has really begun,
// so a worker that is asleep or preempted costs nothing. Workers spin for some 0.1 ms, then sleep on a
// futex.
class Pool {
 public:
  static Pool& instance() {
    static Pool* p = new Pool; // never destroyed: workers may outlive main
    return *p;
  }

  void run(uint32_t chunks, const std::function<void(size_t)>& fn) {
    static thread_local bool inside = false; // a mutex must not be tried by the thread that holds it
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    int limit = limit_.load(std::memory_order_relaxed);
    if (limit == 1 || chunks <= 1 || inside || !lock.try_lock()) {
      for (uint32_t i = 0; i < chunks; i++) fn(i);
      return;
    }
    // Close the old generation first: whoever sees the new chunk count can no longer claim with an old ticket.
    ticket_.store(uint64_t(generation_) << 32 | UINT32_MAX, std::memory_order_relaxed);
    fn_.store(&fn, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    chunks_.store(chunks, std::memory_order_release);
    uint32_t gen = ++generation_;
    ticket_.store(uint64_t(gen) << 32, std::memory_order_release);
    epoch_.store(gen, std::memory_order_release);
    epoch_.notify_all();
    inside = true;
    work(gen);
    inside = false;
    for (int spin = 0; done_.load(std::memory_order_acquire) != chunks;)
      if (++spin < 2000) cpu_pause();
      else std::this_thread::yield();
  }

  int limit() const { return limit_.load(std::memory_order_relaxed); }
  void set_limit(int n) { limit_.store(n < 1 ? 1 : (n > size_ ? size_ : n), std::memory_order_relaxed); }

 private:
  Pool() {
    const char* e = getenv("PLASTIC_THREADS");
    int wanted = default_threads.load();
    int n = e && *e ? atoi(e) : wanted ? wanted : available_cores();
    size_ = n < 1 ? 1 : (n > 256 ? 256 : n);
    limit_ = size_;
    for (int t = 1; t < size_; t++) {
      try {
        std::thread([this, t] { worker(t); }).detach();
      } catch (const std::system_error&) { // as many as the system lets us have
        limit_ = size_ = t;
      }
    }
  }

  void worker(int index) {
    for (uint32_t seen = 0;;) {
      for (int i = 0; i < 4000 && epoch_.load(std::memory_order_acquire) == seen; i++) cpu_pause();
      epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (index < limit()) work(seen);
    }
  }

  // A ticket is generation << 32 | next chunk: a late worker cannot take a chunk of a generation that
  // is over, and run() does not return while a claimed chunk is unfinished, so fn_ stays valid for
  // whoever holds one.
  // Out of memory in a chunk ends the process: workers must not be left with a function that is gone.
  void work(uint32_t gen) noexcept {
    uint64_t t = ticket_.load(std::memory_order_acquire);
    while (uint32_t(t >> 32) == gen && uint32_t(t) < chunks_.load(std::memory_order_acquire)) {
      if (!ticket_.compare_exchange_weak(t, t + 1, std::memory_order_acq_rel)) continue;
      (*fn_.load(std::memory_order_relaxed))(uint32_t(t));
      done_.fetch_add(1, std::memory_order_release);
      t = ticket_.load(std::memory_order_acquire);
    }
  }

  int size_ = 1;
  std::atomic<int> limit_{1};
  uint32_t generation_ = 0;
  std::atomic<const std::function<void(size_t)>*> fn_{nullptr};
  std::atomic<uint32_t> chunks_{0}, done_{0}, epoch_{0};
  std::atomic<uint64_t> ticket_{0};
  std::mutex busy_;
};

} // namespace

void parallel(size_t chunks, const std::function<void(size_t)>& fn) { Pool::instance().run(uint32_t(chunks), fn); }
int threads() { return Pool::instance().limit(); }

float* scratch(int slot, size_t n) {
  static thread_local Scratch slots[8];
  return slots[slot].get(n);
}

// ---- instruction set
namespace scalar { extern const Simd table; }
#if defined(__x86_64__)
namespace avx2 { extern const Simd table; }
namespace avx512 { extern const Simd table; }
#endif

namespace {
// The table of that name, or null when there is none or this machine cannot run it.
const Simd* find(const char* name) {
  if (!strcmp(name, "scalar")) return &scalar::table;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
            __builtin_cpu_supports("f16c");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512cd");
  if (!strcmp(name, "avx2") && v3) return &avx2::table;
  if (!strcmp(name, "avx512") && v4) return &avx512::table;
#endif
  return nullptr;
}
const Simd* choose() {
  const char* want = getenv("PLASTIC_ISA");
  for (const char* name : {want ? want : "", "avx512", "avx2"})
    if (const Simd* t = find(name)) return t;
  return &scalar::table;
}
std::atomic<const Simd*>& current() {
  static std::atomic<const Simd*> t{choose()};
  return t;
}
} // namespace

const Simd& simd() { return *current().load(std::memory_order_relaxed); }

} // namespace pk

// ---- C surface
// Threads to start with; counts before the pool is first used.
extern "C" void pk_default_threads(int n) { pk::default_threads = n; }
extern "C" int pk_threads(void) { return pk::threads(); }
extern "C" void pk_set_threads(int n) { pk::Pool::instance().set_limit(n); }
extern "C" const char* pk_isa(void) { return pk::simd().name; }
// Returns 0, or 1 when this machine has no such instruction set.
extern "C" int pk_force_isa(const char* name) {
  const pk::Simd* t = pk::find(name);
  if (t) pk::current().store(t);
  return t ? 0 : 1;
}

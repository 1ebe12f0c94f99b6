// Checks the products against plain double arithmetic over random shapes, kinds of storage and numbers of rows, with
// every instruction set of this machine. Built with the address and undefined-behaviour sanitizers by
// `make check-kernels`: every buffer ends where its last element ends, so that one step too far is seen.
//
//   check [cases [seed]]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <memory>
#include <random>
#include <string>

#include "../product.h"

extern "C" const char* pk_isa(void);
extern "C" int pk_force_isa(const char* name);
extern "C" void pk_set_threads(int n);

using namespace pk;

namespace {

std::mt19937_64 rng;
int between(int low, int high) { return low + int(rng() % uint64_t(high - low + 1)); }
float number() { return float(int(rng() % 2001) - 1000) / 1000.f; }

float half(uint16_t h) {
  const int e = h >> 10 & 31, m = h & 1023;
  const float v = e ? std::ldexp(1.f + float(m) / 1024.f, e - 15) : std::ldexp(float(m), -24);
  return h & 0x8000 ? -v : v;
}
float wide(uint16_t b) {
  const uint32_t u = uint32_t(b) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// A weight in memory of exactly its size, and what it should be read as.
struct Weight {
  std::unique_ptr<uint8_t[]> codes, scales, biases;
  std::vector<double> values;
  Matrix m{};
};

uint16_t small_half() { return uint16_t((rng() & 0x8000) | uint64_t(between(8, 15)) << 10 | (rng() & 1023)); }
uint16_t small_bfloat() { return uint16_t((rng() & 0x8000) | uint64_t(between(118, 126)) << 7 | (rng() & 127)); }

double small_float(int bits, unsigned code) {
  if (bits == 4) {
    static const double magnitude[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    return (code & 8 ? -1 : 1) * magnitude[code & 7];
  }
  const int e = int(code >> 3 & 15), m = int(code & 7);
  const double v = e ? std::ldexp(1 + m / 8., e - 7) : std::ldexp(m / 8., -6);
  return code & 128 ? -v : v;
}

Weight weight(int N, int K, int kind, int group, Number type) {
  Weight w;
  Matrix& m = w.m;
  m.N = N, m.K = K, m.kind = kind, m.group = group, m.number = type;
  const size_t bytes = m.row_bytes() * size_t(N);
  w.codes.reset(new uint8_t[bytes]);
  m.codes = w.codes.get();
  w.values.resize(size_t(N) * K);
  auto put = [](uint8_t* at, auto v) { memcpy(at, &v, sizeof v); };
  if (kind == KIND_F32 || kind == KIND_F16 || kind == KIND_BF16) {
    m.group = std::max(K, 1);
    for (size_t i = 0; i < w.values.size(); i++) {
      if (kind == KIND_F32) {
        const float f = number();
        put(w.codes.get() + 4 * i, f), w.values[i] = f;
      } else {
        const uint16_t h = kind == KIND_F16 ? small_half() : small_bfloat();
        put(w.codes.get() + 2 * i, h), w.values[i] = kind == KIND_F16 ? half(h) : wide(h);
      }
    }
    return w;
  }
  const int bits = m.bits(), groups = K / group;
  for (size_t i = 0; i < bytes; i++) {
    w.codes[i] = uint8_t(rng());
    if (kind == KIND_MXFP8 && (w.codes[i] & 127) == 127) w.codes[i] = 0; // NaN
  }
  const size_t size = type == F32 ? 4 : type >= E8M0 ? 1 : 2, count = size_t(N) * groups;
  std::vector<double> s(count), b(count, 0.);
  auto fill = [&](std::unique_ptr<uint8_t[]>& to, std::vector<double>& values) {
    to.reset(new uint8_t[count * size]);
    for (size_t i = 0; i < count; i++) {
      uint8_t* at = to.get() + i * size;
      if (type == F32) {
        const float f = number() / 8;
        put(at, f), values[i] = f;
      } else if (type == F16) {
        const uint16_t h = small_half();
        put(at, h), values[i] = half(h);
      } else if (type == BF16) {
        const uint16_t h = small_bfloat();
        put(at, h), values[i] = wide(h);
      } else if (type == E8M0) {
        *at = uint8_t(between(120, 128)), values[i] = std::ldexp(1., *at - 127);
      } else {
        *at = uint8_t(between(8, 100)), values[i] = small_float(8, *at);
      }
    }
  };
  fill(w.scales, s);
  m.scales = w.scales.get();
  if (kind <= 8) fill(w.biases, b), m.biases = w.biases.get();
  for (int n = 0; n < N; n++)
    for (int k = 0; k < K; k++) {
      unsigned code = 0;
      for (int i = 0; i < bits; i++) { // a stream of bits, lowest first
        const size_t at = size_t(k) * bits + i;
        code |= unsigned(w.codes[size_t(n) * m.row_bytes() + at / 8] >> (at % 8) & 1) << i;
      }
      const size_t g = size_t(n) * groups + size_t(k / group);
      w.values[size_t(n) * K + k] =
          kind <= 8 ? double(float(s[g] * code + b[g])) : s[g] * small_float(bits, code);
    }
  return w;
}

Weight any_weight(int N, int K) { // of about these sizes
  static const int kinds[] = {2, 3, 4, 5, 6, 8, KIND_F32, KIND_F16, KIND_BF16, KIND_MXFP4, KIND_MXFP8, KIND_NVFP4};
  const int kind = kinds[rng() % 12];
  if (kind == KIND_F32 || kind == KIND_F16 || kind == KIND_BF16) return weight(N, K, kind, K, F32);
  const int group = kind == KIND_NVFP4 ? 16 : kind > 8 ? 32 : 32 << rng() % 3;
  static const Number types[] = {F32, F16, BF16};
  const Number type = kind == KIND_NVFP4 ? E4M3 : kind > 8 ? E8M0 : types[rng() % 3];
  return weight(N, std::max(32, group) * ((K + group - 1) / std::max(32, group) + (K < group)), kind, group, type);
}

// y = x W^T or x W in double, and the sum of magnitudes for the tolerance.
struct Plain {
  std::vector<double> y, size;
};
Plain plain(const Weight& w, Side side, const std::vector<double>& x, int M) {
  const int N = w.m.N, K = w.m.K, inner = side == Side::Inputs ? K : N, columns = side == Side::Inputs ? N : K;
  Plain p{std::vector<double>(size_t(M) * columns), std::vector<double>(size_t(M) * columns)};
  for (int m = 0; m < M; m++)
    for (int c = 0; c < columns; c++)
      for (int i = 0; i < inner; i++) {
        const double v = x[size_t(m) * inner + i] * w.values[side == Side::Inputs ? size_t(c) * K + i : size_t(i) * K + c];
        p.y[size_t(m) * columns + c] += v, p.size[size_t(m) * columns + c] += std::fabs(v);
      }
  return p;
}

std::unique_ptr<float[]> exact(const std::vector<double>& v) {
  std::unique_ptr<float[]> r(new float[v.size()]);
  for (size_t i = 0; i < v.size(); i++) r[i] = float(v[i]);
  return r;
}
std::vector<double> random_values(size_t n) {
  std::vector<double> v(n);
  for (auto& x : v) x = number();
  return v;
}

int failures = 0;
void compare(const std::string& what, const float* got, const Plain& want) {
  for (size_t i = 0; i < want.y.size(); i++) {
    const double tolerance = 1e-6 + 4e-6 * want.size[i];
    if (std::fabs(got[i] - want.y[i]) <= tolerance) continue;
    printf("FAILED %s: element %zu is %.9g instead of %.9g (%s)\n", what.c_str(), i, double(got[i]), want.y[i], pk_isa());
    failures++;
    return;
  }
}

int rows_of_x() {
  static const int some[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 18, 23, 24, 25, 49, 100};
  return some[rng() % 15];
}

void one_product() {
  Weight w = any_weight(between(1, 150), between(1, 300));
  const Side side = rng() % 2 ? Side::Inputs : Side::Rows;
  const int M = rows_of_x(), inner = side == Side::Inputs ? w.m.K : w.m.N, columns = side == Side::Inputs ? w.m.N : w.m.K;
  const auto x = random_values(size_t(M) * inner);
  Plain want = plain(w, side, x, M);
  auto xs = exact(x);
  std::unique_ptr<float[]> y(new float[size_t(M) * columns]);
  const bool add = rng() % 2;
  for (size_t i = 0; i < want.y.size(); i++) {
    y[i] = add ? .5f : NAN;
    if (add) want.y[i] += .5;
  }
  const Job job{w.m, side, xs.get(), inner, y.get(), columns, add, {}};
  multiply(&job, 1, M);
  compare("kind " + std::to_string(w.m.kind) + ", groups of " + std::to_string(w.m.group) + ", [" +
              std::to_string(w.m.N) + ", " + std::to_string(w.m.K) + "], " + std::to_string(M) + " rows, side " +
              std::to_string(int(side)),
          y.get(), want);
}

// A base and up to two pairs with everything that may come after.
void one_projection() {
  const int inner = 32 * between(1, 8), M = rng() % 8 ? rows_of_x() : between(1000, 1100);
  Weight base = any_weight(between(1, 120), inner);
  while (base.m.K != inner) base = any_weight(between(1, 120), inner);
  const int outputs = base.m.N;
  const auto x = random_values(size_t(M) * inner);
  const bool with_base = rng() % 4;
  Plain want = plain(base, Side::Inputs, x, M);
  if (!with_base) std::fill(want.y.begin(), want.y.end(), 0.), std::fill(want.size.begin(), want.size.end(), 0.);
  std::vector<Weight> kept;
  std::vector<Pair> pairs;
  kept.reserve(4);
  for (int i = with_base ? between(0, 2) : between(1, 2); i > 0; i--) {
    const int rank = between(1, 70);
    kept.push_back(weight(rank, inner, KIND_F32, inner, F32));
    const Weight& b = kept.back();
    const bool turned = rng() % 2; // A stored as components, one a row
    kept.push_back(turned ? weight(rank, outputs, KIND_F16, outputs, F32) : weight(outputs, rank, KIND_F32, rank, F32));
    const Weight& a = kept.back();
    const Side side = turned ? Side::Rows : Side::Inputs;
    const Plain thin = plain(b, Side::Inputs, x, M), more = plain(a, side, thin.y, M), size = plain(a, side, thin.size, M);
    for (size_t e = 0; e < want.y.size(); e++) want.y[e] += more.y[e], want.size[e] += size.size[e] + 10;
    pairs.push_back({b.m, Side::Inputs, a.m, side});
  }
  const auto gain = random_values(size_t(outputs)), bias = random_values(size_t(outputs)),
             residual = random_values(size_t(M) * outputs);
  auto g = exact(gain), b = exact(bias), r = exact(residual), xs = exact(x);
  const bool with[3] = {rng() % 2 != 0, rng() % 2 != 0, rng() % 2 != 0};
  for (size_t e = 0; e < want.y.size(); e++) {
    const size_t c = e % size_t(outputs);
    if (with[0]) want.y[e] *= gain[c];
    if (with[1]) want.y[e] += bias[c];
    if (with[2]) want.y[e] += residual[e];
  }
  std::unique_ptr<float[]> y(new float[size_t(M) * outputs]);
  const Projection p{with_base ? &base.m : nullptr, Side::Inputs, pairs.data(), pairs.size(),
                     {with[0] ? g.get() : nullptr, with[1] ? b.get() : nullptr, with[2] ? r.get() : nullptr, outputs},
                     y.get(), outputs};
  project(&p, 1, xs.get(), inner, M);
  compare("projection of kind " + std::to_string(base.m.kind) + " with " + std::to_string(pairs.size()) + " pairs, " +
              std::to_string(M) + " rows",
          y.get(), want);
}

} // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 300;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  int sets = 0;
  for (const char* isa : {"scalar", "avx2", "avx512", "neon"}) {
    if (pk_force_isa(isa)) continue;
    sets++;
    for (int threads : {1, 4}) {
      pk_set_threads(threads);
      rng.seed(seed);
      for (int i = 0; i < cases && failures < 10; i++) one_product(), one_projection();
    }
    printf("%s: %d products and %d projections\n", isa, 2 * cases, 2 * cases);
  }
  printf(failures ? "%d FAILED\n" : "all agree\n", failures);
  return failures || !sets;
}

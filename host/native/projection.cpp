// A projection as one MLX primitive: its stored weight, thin pairs in its place or added to it, gain, bias and
// residual in one pass, differentiable in x, the residual and the pairs.
#include "projection.h"

namespace pk {
namespace {

Number number_of(mx::Dtype t) { return t == mx::float16 ? F16 : t == mx::bfloat16 ? BF16 : F32; }
bool is_float(mx::Dtype t) { return t == mx::float32 || t == mx::float16 || t == mx::bfloat16; }
int bits_of(const MatrixLayout& l) { return Matrix{nullptr, nullptr, nullptr, 0, 0, l.kind, 0, F32}.bits(); }
Side other(Side s) { return s == Side::Inputs ? Side::Rows : Side::Inputs; }
std::string name(mx::Dtype t) {
  std::ostringstream s;
  s << t;
  return s.str();
}

// inputs: x [..., K], the projection's arrays, residual [..., N] (if any). On the way back: dy for x.
class Project : public Kernel {
 public:
  Project(mx::Stream s, ProjectionLayout l, int outputs, bool residual, bool back)
      : Kernel(s, "project"), l_(std::move(l)), outputs_(outputs), residual_(residual), back_(back) {}
  void eval_cpu(const std::vector<mx::array>& in, std::vector<mx::array>& out) override {
    auto& enc = mx::cpu::get_command_encoder(stream());
    auto x = dense(in[0], enc);
    Prepared p(l_, in.data() + 1, enc, back_);
    const float* residual = residual_ ? dense(in.back(), enc).data<float>() : nullptr;
    allocate(out[0], enc);
    const int K = in[0].shape(-1), N = outputs_, M = out[0].size() ? int(out[0].size() / size_t(N)) : 0;
    enc.dispatch([p = std::move(p), x = x.data<float>(), y = out[0].data<float>(), residual, K, N, M] {
      const Projection one = p.get(y, N, residual, N);
      project(&one, 1, x, K, M);
    });
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& p, const std::vector<mx::array>& ct,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    if (back_) fail("has first derivatives only");
    const auto s = stream();
    auto dy = ct[0];
    if (l_.gain) dy = mx::multiply(dy, p[arrays_before_gain() + 1], s);
    // the pairs' places in the inputs
    const size_t first = 1 + (l_.base ? l_.of_base.arrays() : 0);
    std::vector<mx::array> r;
    for (int n : argnums) {
      if (n == 0) {
        auto in = p;
        in[0] = dy;
        if (residual_) in.pop_back();
        ProjectionLayout l = l_;
        l.gain = l.bias = false; // applied above; a constant
        in.resize(1 + l.arrays(), p[0]);
        r.push_back(mx::array(p[0].shape(), mx::float32, std::make_shared<Project>(s, l, p[0].shape(-1), false, true), in));
      } else if (residual_ && size_t(n) + 1 == p.size()) {
        r.push_back(ct[0]);
      } else {
        const size_t at = size_t(n) - first;
        if (size_t(n) < first || at >= 2 * l_.pairs.size() || l_.pairs[at / 2].first.kind || l_.pairs[at / 2].second.kind)
          fail("has no gradient for stored weights");
        const int M = int(p[0].size() / size_t(p[0].shape(-1)));
        auto x = mx::reshape(p[0], {M, p[0].shape(-1)}, s), d = mx::reshape(dy, {M, dy.shape(-1)}, s);
        auto b = f32(p[first + at / 2 * 2], s), a = f32(p[first + at / 2 * 2 + 1], s);
        if (at % 2 == 0) // d y / d B = (dy A)^T x
          r.push_back(mx::matmul(mx::transpose(mx::matmul(d, a, s), s), x, s));
        else // d y / d A = dy^T (x B^T)
          r.push_back(mx::matmul(mx::transpose(d, s), mx::matmul(x, mx::transpose(b, s), s), s));
        if (p[size_t(n)].dtype() != mx::float32) r.back() = mx::astype(r.back(), p[size_t(n)].dtype(), s);
      }
    }
    return r;
  }
  bool is_equivalent(const Primitive& o) const override {
    const auto& p = static_cast<const Project&>(o);
    return p.l_ == l_ && p.outputs_ == outputs_ && p.residual_ == residual_ && p.back_ == back_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& in) override {
    auto s = in[0].shape();
    s.back() = outputs_;
    return {s};
  }

 private:
  size_t arrays_before_gain() const { return l_.arrays() - l_.gain - l_.bias; }

  ProjectionLayout l_;
  int outputs_;
  bool residual_, back_;
};

} // namespace

std::pair<int, int> shape_of(const MatrixLayout& l, const mx::array* a, const char* what) {
  PK_REQUIRE(a[0].ndim() == 2, what, ": a weight ", text(a[0]), " is no matrix");
  if (!l.kind) {
    PK_REQUIRE(is_float(a[0].dtype()), what, ": weights of type ", name(a[0].dtype()), " are not known");
    return {a[0].shape(0), a[0].shape(1)};
  }
  const bool small = l.kind >= KIND_MXFP4, affine = (l.kind >= 2 && l.kind <= 6) || l.kind == 8;
  const int bits = bits_of(l);
  PK_REQUIRE(small ? l.kind <= KIND_NVFP4 && l.group == (l.kind == KIND_NVFP4 ? 16 : 32)
                : affine && (l.group == 32 || l.group == 64 || l.group == 128),
          what, ": no quantisation with ", bits, " bits in groups of ", l.group);
  const int64_t K = int64_t(a[0].shape(1)) * 32 / bits;
  const mx::Shape groups{a[0].shape(0), int(K / l.group)};
  bool fits = a[0].dtype() == mx::uint32 && K % l.group == 0 && K * bits == int64_t(a[0].shape(1)) * 32 &&
              a[1].shape() == groups;
  fits = fits && (small ? a[1].dtype() == mx::uint8
                        : a[2].shape() == groups && a[1].dtype() == a[2].dtype() && is_float(a[1].dtype()));
  PK_REQUIRE(fits, what, ": codes ", text(a[0]), " with scales ", text(a[1]), " of type ", name(a[1].dtype()),
          " are no weight of ", bits, " bits in groups of ", l.group);
  const int rows = a[0].shape(0);
  return l.transposed ? std::pair(int(K), rows) : std::pair(rows, int(K));
}

Matrix prepare(const MatrixLayout& l, const mx::array* a, mx::cpu::CommandEncoder& enc, Side& side) {
  Matrix w{};
  if (l.transposed) side = other(side);
  if (l.kind) {
    w.codes = dense(a[0], enc).data<void>();
    w.scales = dense(a[1], enc).data<void>();
    w.biases = l.arrays() == 3 ? dense(a[2], enc).data<void>() : nullptr;
    w.N = a[0].shape(0);
    w.K = int(int64_t(a[0].shape(1)) * 32 / bits_of(l));
    w.kind = l.kind, w.group = l.group;
    w.number = l.kind == KIND_NVFP4 ? E4M3 : l.kind >= KIND_MXFP4 ? E8M0 : number_of(a[1].dtype());
    return w;
  }
  const bool columns = a[0].strides(0) == 1 && a[0].strides(1) == a[0].shape(0) && !a[0].flags().row_contiguous;
  if (columns) {
    enc.set_input_array(a[0]);
    w.codes = a[0].data<void>();
    w.N = a[0].shape(1), w.K = a[0].shape(0);
    side = other(side);
  } else {
    const auto m = dense(a[0], enc);
    w.codes = m.data<void>();
    w.N = a[0].shape(0), w.K = a[0].shape(1);
  }
  w.group = std::max(w.K, 1);
  w.number = number_of(a[0].dtype());
  w.kind = w.number == F32 ? KIND_F32 : w.number == F16 ? KIND_F16 : KIND_BF16;
  return w;
}

size_t ProjectionLayout::arrays() const {
  size_t n = (base ? of_base.arrays() : 0) + gain + bias;
  for (auto& [b, a] : pairs) n += b.arrays() + a.arrays();
  return n;
}

// ints: base, gain, bias (0 or 1), number of pairs, then kind, group and whether it is transposed of every matrix there is.
ProjectionLayout ProjectionLayout::read(const int*& i) {
  ProjectionLayout l{};
  l.base = *i++, l.gain = *i++, l.bias = *i++;
  l.pairs.resize(size_t(*i++));
  auto matrix = [&] {
    MatrixLayout m{i[0], i[1], i[2] != 0};
    i += 3;
    return m;
  };
  if (l.base) l.of_base = matrix();
  for (auto& [b, a] : l.pairs) b = matrix(), a = matrix();
  return l;
}

int ProjectionLayout::check(const mx::array* a, int inner, const char* what) const {
  int outputs = -1;
  auto same = [&](int n) {
    PK_REQUIRE(outputs < 0 || outputs == n, what, ": ", n, " outputs beside ", outputs);
    outputs = n;
  };
  if (base) {
    auto [rows, cols] = shape_of(of_base, a, what);
    PK_REQUIRE(cols == inner, what, ": a weight for ", cols, " inputs, but x has ", inner);
    same(rows);
    a += of_base.arrays();
  }
  for (auto& [lb, la] : pairs) {
    auto [rank, cols] = shape_of(lb, a, what);
    a += lb.arrays();
    auto [rows, thin] = shape_of(la, a, what);
    a += la.arrays();
    PK_REQUIRE(cols == inner && thin == rank, what, ": factors [", rows, ", ", thin, "] and [", rank, ", ", cols,
            "] for x with ", inner, " features");
    same(rows);
  }
  PK_REQUIRE(outputs >= 0, what, ": nothing to multiply with");
  for (int i = 0; i < gain + bias; i++, a++)
    PK_REQUIRE(a->ndim() == 1 && a->shape(0) == outputs && a->dtype() == mx::float32, what, ": a gain or bias ", text(*a),
            " for ", outputs, " outputs");
  return outputs;
}

Prepared::Prepared(const ProjectionLayout& l, const mx::array* a, mx::cpu::CommandEncoder& enc, bool back) {
  const Side way = back ? Side::Rows : Side::Inputs;
  if (l.base) {
    has_base = true;
    base_side = way;
    base = prepare(l.of_base, a, enc, base_side);
    a += l.of_base.arrays();
  }
  for (auto& [lb, la] : l.pairs) {
    Side b_side = way, a_side = way;
    const Matrix b = prepare(lb, a, enc, b_side);
    a += lb.arrays();
    const Matrix m = prepare(la, a, enc, a_side);
    a += la.arrays();
    pairs.push_back(back ? Pair{m, a_side, b, b_side} : Pair{b, b_side, m, a_side});
  }
  if (l.gain) gain = dense(*a++, enc).data<float>();
  if (l.bias) bias = dense(*a++, enc).data<float>();
}

Projection Prepared::get(float* y, ptrdiff_t ldy, const float* residual, ptrdiff_t ld) const {
  return {has_base ? &base : nullptr, base_side, pairs.data(), pairs.size(), {gain, bias, residual, ld}, y, ldy};
}

} // namespace pk

// `arrays`: what the layout names, then the residual where it is no empty handle.
extern "C" int pk_project(mlx_array* res, mlx_array x_, const mlx_array* arrays, size_t count, const int* layout,
                          mlx_array residual_, mlx_stream s_, char* err, size_t len) {
  using namespace pk;
  return guarded(err, len, [&] {
    auto s = get(s_);
    const auto l = ProjectionLayout::read(layout);
    PK_REQUIRE(count == l.arrays(), "project: ", count, " arrays for a layout of ", l.arrays());
    std::vector<mx::array> in{f32(get(x_), s)};
    for (size_t i = 0; i < count; i++) in.push_back(get(arrays[i]));
    PK_REQUIRE(in[0].ndim() >= 1, "project: x is a scalar");
    const int outputs = l.check(in.data() + 1, in[0].shape(-1), "project");
    auto shape = in[0].shape();
    shape.back() = outputs;
    if (residual_.ctx) {
      in.push_back(f32(get(residual_), s));
      PK_REQUIRE(in.back().shape() == shape, "project: residual ", text(in.back()), " beside results ", text(shape));
    }
    put(res, mx::array(shape, mx::float32, std::make_shared<Project>(s, l, outputs, residual_.ctx != nullptr, false), in));
  });
}

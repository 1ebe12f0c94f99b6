// Inputs of the primitives in the order their kernels read them.
#include "plastic.h"

namespace pk {
namespace {
template <class T>
void copy_strided(const T* src, T* dst, const mx::Shape& shape, const mx::Strides& strides) {
  int last = int(shape.size()) - 1;
  std::vector<int> index(shape.size(), 0);
  size_t rows = 1;
  for (int i = 0; i < last; i++) rows *= size_t(shape[i]);
  for (size_t r = 0; r < rows; r++) {
    int64_t at = 0;
    for (int i = 0; i < last; i++) at += index[i] * strides[i];
    for (int i = 0; i < shape[last]; i++) *dst++ = src[at + i * strides[last]];
    for (int i = last - 1; i >= 0 && ++index[i] == shape[i]; i--) index[i] = 0;
  }
}
} // namespace

mx::array dense(const mx::array& a, mx::cpu::CommandEncoder& enc) {
  enc.set_input_array(a);
  if (a.flags().row_contiguous || a.size() <= 1) return a;
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  allocate(copy, enc);
  enc.add_temporary(copy);
  enc.dispatch([src = a.data<void>(), dst = copy.data<void>(), size = a.itemsize(), shape = a.shape(), strides = a.strides()] {
    if (size == 1) copy_strided(static_cast<const uint8_t*>(src), static_cast<uint8_t*>(dst), shape, strides);
    else if (size == 2) copy_strided(static_cast<const uint16_t*>(src), static_cast<uint16_t*>(dst), shape, strides);
    else copy_strided(static_cast<const uint32_t*>(src), static_cast<uint32_t*>(dst), shape, strides);
  });
  return copy;
}

} // namespace pk

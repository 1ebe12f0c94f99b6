// One table of inner loops, compiled for the instruction set the build script's flags name.
#include "vec.h"

namespace pk {
namespace PK_ISA {
#include "attention.inl"
#include "columns.inl"
#include "elementwise.inl"
#include "gemm.inl"
#include "norm.inl"
#include "decode.inl"
#include "product.inl"

#define PK_STR2(x) #x
#define PK_STR(x) PK_STR2(x)
extern const Simd table;
const Simd table = {PK_STR(PK_ISA), MR, NR, gemm, pack, FEW, arrange, dots, sums, panel_of_rows, panel_of_columns, rows, strip, swiglu, swiglu_grad, column_lse, column_exp, column_cross, row_lse,
                    softmax_block, scale_rows, softmax_grad_columns, softmax_grad_rows, dot, attend, rms_norm, rms_norm_grad, rope};
} // namespace PK_ISA
} // namespace pk

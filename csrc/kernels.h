// The contract between ops (torch-aware) and the contractions (torch-free): plain structs over raw
// pointers, one CPU and one CUDA implementation of each. Contractions never allocate (scratch comes from
// x_workspace(args) bytes at args.workspace), never synchronise, and are deterministic. Status 0 is
// success; the CUDA side returns its cudaError_t. Each family of contractions has a header in contract/.
#pragma once
#include "contract/conv.h"
#include "contract/elementwise.h"
#include "contract/linear.h"
#include "contract/loss.h"
#include "contract/norm.h"
#include "contract/pde.h"
#include "contract/pool.h"
#include "contract/rnn.h"

namespace rad {

// Every contraction as F(result, name, arguments): `result name(const arguments&)`.
#define RAD_CONTRACTIONS(F)       \
  RAD_LINEAR_CONTRACTIONS(F)      \
  RAD_CONV_CONTRACTIONS(F)        \
  RAD_ELEMENTWISE_CONTRACTIONS(F) \
  RAD_LOSS_CONTRACTIONS(F)        \
  RAD_POOL_CONTRACTIONS(F)        \
  RAD_RNN_CONTRACTIONS(F)         \
  RAD_NORM_CONTRACTIONS(F)        \
  RAD_PDE_CONTRACTIONS(F)

#define RAD_DECLARE(result, name, arguments) result name(const arguments& args);

namespace cpu {
RAD_CONTRACTIONS(RAD_DECLARE)
}  // namespace cpu

namespace cuda {
RAD_CONTRACTIONS(RAD_DECLARE)
const char* error_string(int status);
}  // namespace cuda

#undef RAD_DECLARE
}  // namespace rad

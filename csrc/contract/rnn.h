// One time step of a recurrent layer, apart from its matrix products and its sigmoids and hyperbolic
// tangents, which are the framework's own. docs/maths.md, recurrent layers, names the factors.
#pragma once
#include "contract/types.h"

namespace rad {

enum class RnnCell : int32_t { kRelu = 0, kTanh = 1, kLstm = 2, kGru = 3 };

// What is kept of one step's derivative: streams of factors, each [rows * hidden] codes, element by element.
// relu: one exact bit an element. Streams whose range is not known have lo and step for groups of 64
// elements.
struct RnnFactors {
  int32_t bits;            // 8, 4, 2 or 1; 0: values of dtype
  const Trailer* trailer;  // complete
  int64_t line;            // of the random words: the step, counted over all directions
  void* codes;             // stream s begins at codes + s * codes_pitch (bytes, a multiple of 8)
  int64_t codes_pitch;
  void* lo;  // groups of ranged stream r: at lo + r * lo_pitch, fp32 (fp64 for fp64)
  int64_t lo_pitch;
  void* step;  // the same in bf16
  int64_t step_pitch;
};

// Forward, in stages between which the caller applies the named function to columns of `gates` in place:
// relu  0: everything
// tanh  0: sum             tanh(gates)                                     1: h
// lstm  0: sum             sigmoid(i, f, o), tanh(g)   1: c  tanh_c = tanh(c)   2: h
// gru   0: sum of r, z     sigmoid(r, z)               1: sum of n  tanh(n of inputs)  2: h
// A last stage moves h to `kept` and writes the new one to h and y; a stage with new factors stores them.
struct RnnForwardArgs {
  Exec exec;
  DType dtype;
  RnnCell cell;
  int32_t stage;
  int64_t rows, hidden;
  void* gates;         // [rows, gates * hidden]: W_hh h + b_hh, becomes the sum
  void* inputs;        // [rows, gates * hidden]: W_ih x + b_ih; of gru, n becomes the sum
  void* h;             // [rows, hidden], the state
  void* c;             // [rows, hidden], lstm
  const void* tanh_c;  // [rows, hidden], lstm
  void* kept;          // [rows, hidden] or null
  void* y;             // [rows, hidden] or null
  int64_t y_stride;    // of its rows
  RnnFactors factors;  // codes null: nothing is stored
};

// Gradients of the gates' pre-activations, and of the states as far as no matrix product is involved.
struct RnnBackwardArgs {
  Exec exec;
  DType dtype;
  RnnCell cell;
  int64_t rows, hidden;
  const void* dy;  // [rows, hidden] or null: added to dh
  int64_t dy_stride;
  void* dh;       // [rows, hidden]; gru: becomes what reaches the earlier h past the products
  void* dc;       // [rows, hidden], lstm: becomes that of the earlier c
  void* dgates;   // [rows, gates * hidden], behind W_hh h + b_hh
  void* dinputs;  // the same behind W_ih x + b_ih: gru only, elsewhere the two are equal
  RnnFactors factors;
};

}  // namespace rad

#define RAD_RNN_CONTRACTIONS(F)       \
  F(int, rnn_forward, RnnForwardArgs) \
  F(int, rnn_backward, RnnBackwardArgs)

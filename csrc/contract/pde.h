// Reaction and diffusion on a grid: the whole time loop and its sampled adjoint.
#pragma once
#include "contract/types.h"

namespace rad {

// Explicit Euler steps of u_t = D laplace(u) + S(t) u inside a fixed boundary, for `batch` separate grids:
//   u_{t+1} = u_t + rate lap(u_t) + dt S_t u_t,    S_t = sum_m clock[t mod period][m] source[m]
// with the five-point lap in units of the spacing. Each cell's misfit is dt sum_t (u_{t+1} - T_t)^2, with
// T_t = sum_m clock[t mod period][m] target[m].
struct ReactionDiffusion {
  int64_t batch, height, width, modes, steps, period;
  double rate, dt;     // rate = D dt / spacing^2
  const void* u;       // [batch, height, width], the first state
  const void* source;  // [batch, modes, height, width]
  const void* target;  // [modes, height, width]
  const void* clock;   // [period, modes]
};

// States are kept as a pack `different` of the matrix [batch * steps, (height - 2) (width - 2)] whose row
// b steps + t is the inner part of u_{t+1} of grid b: every step draws its own entries. dtype: kF32, kF64.
struct ReactionDiffusionArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  ReactionDiffusion pde;
  uint64_t salt;  // below 2^32
  void* saved;    // saved_layout(...).bytes bytes, the key in place, 16-byte aligned; null keeps nothing
  void* last;     // [batch, height, width]
  void* misfit;   // [batch, height, width]
  void* workspace;
};

// du and dsource from the gradients of last and misfit: the adjoint steps, with each state replaced by the
// estimate that its row of `saved` gives.
struct ReactionDiffusionBackwardArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  ReactionDiffusion pde;
  const void* saved;
  const void* dlast;    // [batch, height, width]
  const void* dmisfit;  // [batch, height, width]
  void* du;             // [batch, height, width]
  void* dsource;        // [batch, modes, height, width]
  void* workspace;
};

}  // namespace rad

#define RAD_PDE_CONTRACTIONS(F)                                                    \
  F(int64_t, reaction_diffusion_workspace, ReactionDiffusionArgs)                  \
  F(int, reaction_diffusion, ReactionDiffusionArgs)                                \
  F(int64_t, reaction_diffusion_backward_workspace, ReactionDiffusionBackwardArgs) \
  F(int, reaction_diffusion_backward, ReactionDiffusionBackwardArgs)

// What the CPU and the GPU must do alike in reaction and diffusion: which entries of a state are kept, and
// the arithmetic of a cell, in single roundings (docs/maths.md, reaction and diffusion).
#pragma once
#include "core/layout.h"

namespace rad {

// The inner cells of a grid, numbered row by row, as columns of the packed matrix.
struct InnerCells {
  int64_t width, count;

  RAD_HD InnerCells(int64_t height, int64_t width_) : width(width_), count((height - 2) * (width_ - 2)) {}
  RAD_HD int64_t cell(int64_t inner) const {
    return (inner / (width - 2) + 1) * width + inner % (width - 2) + 1;
  }
};

// The inner neighbour of a cell of the boundary; -1 for a corner, which has none.
RAD_HD int64_t inward(int64_t y, int64_t x, int64_t height, int64_t width) {
  const bool edge_y = y == 0 || y == height - 1, edge_x = x == 0 || x == width - 1;
  if (edge_y && edge_x) return -1;
  if (edge_y) return (y == 0 ? 1 : height - 2) * width + x;
  return y * width + (x == 0 ? 1 : width - 2);
}

// The kept cells of one state. With all of them kept nothing is drawn.
struct StateSample {
  Sampler sampler;
  InnerCells inner;

  RAD_HD StateSample(const SketchSpec& spec, const ReactionDiffusion& pde)
      : sampler(0, 0, spec, InnerCells(pde.height, pde.width).count), inner(pde.height, pde.width) {}
  RAD_HD int64_t k() const { return sampler.k(); }
  RAD_HD bool whole() const { return k() == inner.count; }
  RAD_HD int64_t cell(int64_t row, int64_t i) const {
    return inner.cell(whole() ? i : sampler.index(row, i));
  }
  // What a kept value stands for: the estimate of its cell.
  template <class Real>
  RAD_HD Real estimate(int64_t i, Real value) const {
    return product(sampler.template weight<Real>(i), value);
  }
};

template <class Real>
struct Euler {
  Real rate, dt;

  explicit Euler(const ReactionDiffusion& pde)
      : rate(static_cast<Real>(pde.rate)), dt(static_cast<Real>(pde.dt)) {}

  // u + rate lap(u) + dt s u. Its own transpose as well: the adjoint step is the same stencil.
  RAD_HD Real step(Real up, Real down, Real left, Real right, Real u, Real s) const {
    const Real lap = ((up + down) + (left + right)) - 4 * u;
    return u + (product(rate, lap) + product(product(dt, s), u));
  }
  RAD_HD Real misfit(Real u, Real target) const {
    const Real error = u - target;
    return product(dt, product(error, error));
  }
  // The derivative of a cell's misfits by u - T, for the gradient `dmisfit` of their sum.
  RAD_HD Real pull(Real dmisfit) const { return product(2 * dt, dmisfit); }
};

}  // namespace rad

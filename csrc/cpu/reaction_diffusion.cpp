#include "core/reaction_diffusion.h"

#include <algorithm>
#include <utility>

#include "core/dtype.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

// Function multiversioning takes no templates, so one overload a type. All run over flat ranges of cells.
#define RAD_PDE_LOOPS(T)                                                                               \
  RAD_VECTOR_CLONES void mix(const T* __restrict fields, const T* __restrict clock, int64_t modes,     \
                             int64_t n, T* __restrict out) {                                           \
    for (int64_t i = 0; i < n; ++i) out[i] = product(clock[0], fields[i]);                             \
    for (int64_t m = 1; m < modes; ++m)                                                                \
      for (int64_t i = 0; i < n; ++i) out[i] += product(clock[m], fields[m * n + i]);                  \
  }                                                                                                    \
  RAD_VECTOR_CLONES void step_range(Euler<T> euler, const T* __restrict u, const T* __restrict s,      \
                                    int64_t width, int64_t first, int64_t last, T* __restrict next) {  \
    for (int64_t i = first; i < last; ++i)                                                             \
      next[i] = euler.step(u[i - width], u[i + width], u[i - 1], u[i + 1], u[i], s[i]);                \
  }                                                                                                    \
  RAD_VECTOR_CLONES void add_misfit(Euler<T> euler, const T* __restrict u, const T* __restrict target, \
                                    int64_t n, T* __restrict misfit) {                                 \
    for (int64_t i = 0; i < n; ++i) misfit[i] += euler.misfit(u[i], target[i]);                        \
  }                                                                                                    \
  RAD_VECTOR_CLONES void take_target(Euler<T> euler, const T* __restrict dmisfit,                      \
                                     const T* __restrict target, int64_t n, T* __restrict adjoint) {   \
    for (int64_t i = 0; i < n; ++i) adjoint[i] -= product(euler.pull(dmisfit[i]), target[i]);          \
  }
RAD_PDE_LOOPS(float)
RAD_PDE_LOOPS(double)

// f(y, x) for every cell of the boundary.
template <class F>
void for_boundary(const ReactionDiffusion& pde, const F& f) {
  for (int64_t y = 0; y < pde.height; ++y) {
    const int64_t stride = y == 0 || y == pde.height - 1 ? 1 : pde.width - 1;
    for (int64_t x = 0; x < pde.width; x += stride) f(y, x);
  }
}

// One grid of the batch: where it lies, and its scratch.
template <class T>
struct Grid {
  const ReactionDiffusion& pde;
  Euler<T> euler;
  StateSample sample;
  int64_t number, n;
  int64_t *cells, *older_cells;  // kept cells of two states
  T *now, *next, *source_now, *target_now;

  static int64_t scratch_bytes(const ReactionDiffusion& pde, const StateSample& sample) {
    return align_plane(2 * sample.k() * int64_t{sizeof(int64_t)} +
                       4 * pde.height * pde.width * int64_t{sizeof(T)});
  }

  Grid(const ReactionDiffusion& pde_, const SketchSpec& spec, int64_t number_, void* workspace)
      : pde(pde_), euler(pde_), sample(spec, pde_), number(number_), n(pde_.height * pde_.width) {
    char* scratch = static_cast<char*>(workspace) + number * scratch_bytes(pde, sample);
    cells = reinterpret_cast<int64_t*>(scratch), older_cells = cells + sample.k();
    now = reinterpret_cast<T*>(older_cells + sample.k());
    next = now + n, source_now = next + n, target_now = source_now + n;
  }

  // This grid's part of an array [batch, fields, height, width].
  template <class Pointer>
  auto of(Pointer base, int64_t fields = 1) const {
    using Item = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const T, T>;
    return static_cast<Item*>(base) + number * fields * n;
  }
  const T* clock(int64_t t) const { return static_cast<const T*>(pde.clock) + t % pde.period * pde.modes; }
  const T* target(int64_t t) const {
    mix(static_cast<const T*>(pde.target), clock(t), pde.modes, n, target_now);
    return target_now;
  }
  // One step, or that of the adjoint; the boundary stays.
  void step(int64_t t) {
    mix(of(pde.source, pde.modes), clock(t), pde.modes, n, source_now);
    const int64_t w = pde.width;
    step_range(euler, now, source_now, w, w + 1, n - w - 1, next);
    for (int64_t y = 1; y + 1 < pde.height; ++y) {
      next[y * w] = now[y * w];
      next[y * w + w - 1] = now[y * w + w - 1];
    }
    std::swap(now, next);
  }
  int64_t row(int64_t t) const { return number * pde.steps + t; }
  // The kept cells of the state after step t.
  void list_cells(int64_t t, int64_t* list) const {
    const int64_t k = sample.k(), inner_width = pde.width - 2;
    if (sample.whole()) {
      for (int64_t i = 0; i < k; ++i) list[i] = i;
    } else {
      different_row(sample.sampler, row(t), 0, k, list);
    }
    // Strata ascend: rows are counted instead of divided out.
    for (int64_t i = 0, end = inner_width, skipped = pde.width + 1; i < k; ++i) {
      for (; list[i] >= end; end += inner_width) skipped += 2;
      list[i] += skipped;
    }
  }
};

SavedLayout layout_of(const ReactionDiffusion& pde, const SketchSpec& spec, DType dtype) {
  return saved_layout(spec, dtype, pde.batch * pde.steps, InnerCells(pde.height, pde.width).count);
}

template <class T>
void simulate(const ReactionDiffusionArgs& args, int64_t number, const Trailer* trailer) {
  const ReactionDiffusion& pde = args.pde;
  Grid<T> grid(pde, args.spec, number, args.workspace);
  const int64_t k = grid.sample.k();
  std::copy_n(grid.of(pde.u), grid.n, grid.now);
  std::copy_n(grid.of(pde.u), grid.n, grid.next);
  T* misfit = grid.of(args.misfit);
  std::fill_n(misfit, grid.n, T(0));
  if (trailer) {
    grid.sample.sampler.key = trailer->key, grid.sample.sampler.salt = trailer->salt;
    grid.list_cells(0, grid.cells);
  }
  for (int64_t t = 0; t < pde.steps; ++t) {
    grid.step(t);
    add_misfit(grid.euler, grid.now, grid.target(t), grid.n, misfit);
    if (!trailer) continue;
    if (!grid.sample.whole()) grid.list_cells(t, grid.cells);
    T* kept = static_cast<T*>(args.saved) + grid.row(t) * k;
    for (int64_t i = 0; i < k; ++i) kept[i] = grid.now[grid.cells[i]];
  }
  std::copy_n(grid.now, grid.n, grid.of(args.last));
}

template <class T>
class Adjoint {
 public:
  Adjoint(const ReactionDiffusionBackwardArgs& args, int64_t number, const Trailer& trailer)
      : args_(args),
        pde_(args.pde),
        grid_(pde_, args.spec, number, args.workspace),
        dmisfit_(grid_.of(args.dmisfit)),
        du_(grid_.of(args.du)),
        dsource_(grid_.of(args.dsource, pde_.modes)) {
    grid_.sample.sampler.key = trailer.key, grid_.sample.sampler.salt = trailer.salt;
  }

  void run() {
    start();
    grid_.list_cells(pde_.steps - 1, grid_.cells);
    grid_.list_cells(pde_.steps - 1, grid_.older_cells);
    for (int64_t t = pde_.steps - 1; t >= 0; --t) {
      add_state(t);
      if (t > 0 && !grid_.sample.whole()) grid_.list_cells(t - 1, grid_.older_cells);
      add_source_grad(t);
      add_boundary_grad(t);
      grid_.step(t);
      if (t > 0) take_target(grid_.euler, dmisfit_, grid_.target(t - 1), grid_.n, grid_.now);
      clear_boundary();
      std::swap(grid_.cells, grid_.older_cells);
    }
    const int64_t w = pde_.width;
    for (int64_t y = 1; y + 1 < pde_.height; ++y) std::copy_n(grid_.now + y * w + 1, w - 2, du_ + y * w + 1);
  }

 private:
  // The adjoint lives on inner cells; what reaches the boundary goes straight to du.
  void clear_boundary() {
    for_boundary(pde_, [&](int64_t y, int64_t x) { grid_.now[y * pde_.width + x] = 0; });
  }
  void start() {
    std::copy_n(grid_.of(args_.dlast), grid_.n, grid_.now);
    std::copy_n(grid_.of(args_.dlast), grid_.n, du_);
    std::fill_n(dsource_, pde_.modes * grid_.n, T(0));
    std::fill_n(grid_.next, grid_.n, T(0));
    take_target(grid_.euler, dmisfit_, grid_.target(pde_.steps - 1), grid_.n, grid_.now);
    clear_boundary();
  }
  T estimate(int64_t t, int64_t i) const {
    return grid_.sample.estimate(i, static_cast<const T*>(args_.saved)[grid_.row(t) * grid_.sample.k() + i]);
  }
  // The state after step t in the misfit of step t.
  void add_state(int64_t t) {
    for (int64_t i = 0; i < grid_.sample.k(); ++i) {
      const int64_t cell = grid_.cells[i];
      grid_.now[cell] += product(grid_.euler.pull(dmisfit_[cell]), estimate(t, i));
    }
  }
  void add_source_grad(int64_t t, int64_t cell, T u) {
    const T grad = product(grid_.euler.dt, product(grid_.now[cell], u));
    for (int64_t m = 0; m < pde_.modes; ++m) dsource_[m * grid_.n + cell] += product(grid_.clock(t)[m], grad);
  }
  void add_source_grad(int64_t t) {
    if (t > 0) {
      for (int64_t i = 0; i < grid_.sample.k(); ++i)
        add_source_grad(t, grid_.older_cells[i], estimate(t - 1, i));
    } else {
      const T* u = grid_.of(pde_.u);
      for (int64_t i = 0; i < grid_.sample.inner.count; ++i)
        add_source_grad(t, grid_.sample.inner.cell(i), u[grid_.sample.inner.cell(i)]);
    }
  }
  void add_boundary_grad(int64_t t) {
    const T *target = grid_.target(t), *u = grid_.of(pde_.u);
    for_boundary(pde_, [&](int64_t y, int64_t x) {
      const int64_t b = y * pde_.width + x, from = inward(y, x, pde_.height, pde_.width);
      if (from >= 0) du_[b] += product(grid_.euler.rate, grid_.now[from]);
      du_[b] += product(grid_.euler.pull(dmisfit_[b]), u[b] - target[b]);
    });
  }

  const ReactionDiffusionBackwardArgs& args_;
  const ReactionDiffusion& pde_;
  Grid<T> grid_;
  const T* dmisfit_;
  T *du_, *dsource_;
};

// f(TypeTag<T>) for the types that states may have.
template <class F>
int visit_real(DType dtype, F&& f) {
  if (dtype == DType::kF32) return f(TypeTag<float>{});
  if (dtype == DType::kF64) return f(TypeTag<double>{});
  return 1;
}

int64_t workspace_of(const ReactionDiffusion& pde, const SketchSpec& spec, DType dtype) {
  const StateSample sample(spec, pde);
  return pde.batch * (dtype == DType::kF64 ? Grid<double>::scratch_bytes(pde, sample)
                                           : Grid<float>::scratch_bytes(pde, sample));
}

}  // namespace

int64_t reaction_diffusion_workspace(const ReactionDiffusionArgs& args) {
  return workspace_of(args.pde, args.spec, args.dtype);
}

int reaction_diffusion(const ReactionDiffusionArgs& args) {
  Trailer* trailer = nullptr;
  if (args.saved) {
    const SavedLayout layout = layout_of(args.pde, args.spec, args.dtype);
    auto* bytes = static_cast<char*>(args.saved);
    trailer = reinterpret_cast<Trailer*>(bytes + layout.trailer);
    *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
    for (int plane = 0; plane < Gaps::kCount; ++plane)
      std::fill(bytes + layout.gaps.begin[plane], bytes + layout.gaps.end[plane], 0);
  }
  return visit_real(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.exec, args.pde.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) simulate<T>(args, b, trailer);
    });
    return 0;
  });
}

int64_t reaction_diffusion_backward_workspace(const ReactionDiffusionBackwardArgs& args) {
  return workspace_of(args.pde, args.spec, args.dtype);
}

int reaction_diffusion_backward(const ReactionDiffusionBackwardArgs& args) {
  const SavedLayout layout = layout_of(args.pde, args.spec, args.dtype);
  const auto& trailer =
      *reinterpret_cast<const Trailer*>(static_cast<const char*>(args.saved) + layout.trailer);
  return visit_real(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.exec, args.pde.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) Adjoint<T>(args, b, trailer).run();
    });
    return 0;
  });
}

}  // namespace rad::cpu

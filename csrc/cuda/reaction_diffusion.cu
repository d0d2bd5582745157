// A block runs the whole time loop of one grid; its states lie in shared memory where they fit.
#include "core/reaction_diffusion.h"

#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

constexpr int kStepThreads = 512;
constexpr int64_t kSharedBytes = 48 << 10;    // of a block, without asking for more
constexpr int64_t kScratchBytes = 256 << 20;  // of grids that do not fit there
constexpr int kForwardFields = 3, kBackwardFields = 2;

// The cells of a thread with their coordinates, kStepThreads apart: the same ones in every step.
class Cells {
 public:
  RAD_DEVICE Cells(const ReactionDiffusion& pde)
      : width_(static_cast<int>(pde.width)), height_(static_cast<int>(pde.height)) {}
  // f(cell, y, x, inner)
  template <class F>
  RAD_DEVICE void each(F f) const {
    const int n = width_ * height_, down = kStepThreads / width_, right = kStepThreads % width_;
    int y = static_cast<int>(threadIdx.x) / width_, x = static_cast<int>(threadIdx.x) % width_;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kStepThreads) {
      f(i, y, x, y > 0 && x > 0 && y < height_ - 1 && x < width_ - 1);
      y += down, x += right;
      if (x >= width_) x -= width_, ++y;
    }
  }

 private:
  int width_, height_;
};

template <class T>
struct Problem {
  ReactionDiffusion pde;
  Euler<T> euler;
  StateSample sample;
  T* scratch;  // [gridDim.x, fields, cells], or null: in shared memory
  int64_t n;

  RAD_DEVICE T* buffers(int fields) const {
    return scratch ? scratch + blockIdx.x * fields * n : dyn_smem<T>();
  }
  RAD_DEVICE const T* clock(int64_t phase) const {
    return static_cast<const T*>(pde.clock) + phase * pde.modes;
  }
  // sum_m clock[m] fields[m][cell]
  RAD_DEVICE T mix(const void* fields, const T* clock, int64_t cell) const {
    const T* field = static_cast<const T*>(fields) + cell;
    T sum = product(clock[0], field[0]);
    for (int64_t m = 1; m < pde.modes; ++m) sum += product(clock[m], field[m * n]);
    return sum;
  }
  RAD_DEVICE T source(int64_t grid, const T* clock, int64_t cell) const {
    return mix(static_cast<const T*>(pde.source) + grid * pde.modes * n, clock, cell);
  }
  RAD_DEVICE T step(const T* u, int64_t i, T source) const {
    return euler.step(u[i - pde.width], u[i + pde.width], u[i - 1], u[i + 1], u[i], source);
  }
};

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    simulate_kernel(Problem<T> p, T* saved, T* last, T* misfits, KeySource source, TrailerWriter trailer) {
  const Cells cells(p.pde);
  T *now = p.buffers(kForwardFields), *next = now + p.n, *misfit = next + p.n;
  if (saved) {
    trailer.write();
    const Seed seed = source.seed();
    p.sample.sampler.key = seed.key, p.sample.sampler.salt = seed.salt;
  }
  for (int64_t grid = blockIdx.x; grid < p.pde.batch; grid += gridDim.x) {
    const T* u = static_cast<const T*>(p.pde.u) + grid * p.n;
    cells.each([&](int i, int, int, bool) { now[i] = u[i], misfit[i] = 0; });
    __syncthreads();
    for (int64_t t = 0, phase = 0; t < p.pde.steps; ++t, phase = phase + 1 == p.pde.period ? 0 : phase + 1) {
      const T* clock = p.clock(phase);
      cells.each([&](int i, int, int, bool inner) {
        const T value = inner ? p.step(now, i, p.source(grid, clock, i)) : now[i];
        next[i] = value;
        misfit[i] += p.euler.misfit(value, p.mix(p.pde.target, clock, i));
      });
      __syncthreads();
      T* swapped = now;
      now = next, next = swapped;
      if (!saved) continue;
      const int64_t row = grid * p.pde.steps + t, k = p.sample.k();
      for (int64_t i = threadIdx.x; i < k; i += kStepThreads) saved[row * k + i] = now[p.sample.cell(row, i)];
    }
    cells.each([&](int i, int, int, bool) {
      last[grid * p.n + i] = now[i];
      misfits[grid * p.n + i] = misfit[i];
    });
    __syncthreads();
  }
}

template <class T>
struct AdjointArrays {
  const T *saved, *dlast, *dmisfit;
  T *du, *dsource;
};

template <class T>
class Adjoint {
 public:
  RAD_DEVICE Adjoint(const Problem<T>& problem, const AdjointArrays<T>& arrays, int64_t grid)
      : p_(problem), cells_(problem.pde), grid_(grid), saved_(arrays.saved) {
    const int64_t at = grid * p_.n;
    u_ = static_cast<const T*>(p_.pde.u) + at;
    dmisfit_ = arrays.dmisfit + at, du_ = arrays.du + at, dsource_ = arrays.dsource + at * p_.pde.modes;
    now_ = p_.buffers(kBackwardFields), next_ = now_ + p_.n;
    const T *dlast = arrays.dlast + at, *clock = p_.clock((p_.pde.steps - 1) % p_.pde.period);
    cells_.each([&](int i, int, int, bool inner) {
      now_[i] = inner ? dlast[i] - target_pull(clock, i) : T(0);
      next_[i] = 0;
      if (!inner) du_[i] = dlast[i];
      for (int64_t m = 0; m < p_.pde.modes; ++m) dsource_[m * p_.n + i] = 0;
    });
    __syncthreads();
  }

  RAD_DEVICE void run() {
    int64_t phase = (p_.pde.steps - 1) % p_.pde.period;
    for (int64_t t = p_.pde.steps - 1; t >= 0; --t) {
      const T* clock = p_.clock(phase);
      phase = phase == 0 ? p_.pde.period - 1 : phase - 1;
      add_state(t);
      __syncthreads();
      add_source_grad(t, clock);
      const T* older = p_.clock(phase);
      cells_.each([&](int i, int y, int x, bool inner) {
        if (!inner) return add_boundary_grad(clock, i, y, x);
        const T value = p_.step(now_, i, p_.source(grid_, clock, i));
        next_[i] = t > 0 ? value - target_pull(older, i) : value;
      });
      __syncthreads();
      T* swapped = now_;
      now_ = next_, next_ = swapped;
    }
    cells_.each([&](int i, int, int, bool inner) {
      if (inner) du_[i] = now_[i];
    });
    __syncthreads();
  }

 private:
  RAD_DEVICE T target_pull(const T* clock, int64_t i) const {
    return product(p_.euler.pull(dmisfit_[i]), p_.mix(p_.pde.target, clock, i));
  }
  RAD_DEVICE int64_t row(int64_t t) const { return grid_ * p_.pde.steps + t; }
  RAD_DEVICE T estimate(int64_t row, int64_t i) const {
    return p_.sample.estimate(i, saved_[row * p_.sample.k() + i]);
  }
  // The state after step t in the misfit of step t. Kept cells are distinct: one thread each.
  RAD_DEVICE void add_state(int64_t t) {
    for (int64_t i = threadIdx.x; i < p_.sample.k(); i += kStepThreads) {
      const int64_t cell = p_.sample.cell(row(t), i);
      now_[cell] += product(p_.euler.pull(dmisfit_[cell]), estimate(row(t), i));
    }
  }
  RAD_DEVICE void add_source_grad(int64_t t, const T* clock) {
    const int64_t count = t > 0 ? p_.sample.k() : p_.sample.inner.count;
    for (int64_t i = threadIdx.x; i < count; i += kStepThreads) {
      const int64_t cell = t > 0 ? p_.sample.cell(row(t - 1), i) : p_.sample.inner.cell(i);
      const T u = t > 0 ? estimate(row(t - 1), i) : u_[cell];
      const T grad = product(p_.euler.dt, product(now_[cell], u));
      for (int64_t m = 0; m < p_.pde.modes; ++m) dsource_[m * p_.n + cell] += product(clock[m], grad);
    }
  }
  RAD_DEVICE void add_boundary_grad(const T* clock, int i, int y, int x) {
    const int64_t from = inward(y, x, p_.pde.height, p_.pde.width);
    if (from >= 0) du_[i] += product(p_.euler.rate, now_[from]);
    du_[i] += product(p_.euler.pull(dmisfit_[i]), u_[i] - p_.mix(p_.pde.target, clock, i));
  }

  const Problem<T>& p_;
  Cells cells_;
  int64_t grid_;
  const T *saved_, *u_, *dmisfit_;
  T *du_, *dsource_, *now_, *next_;
};

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    adjoint_kernel(Problem<T> p, AdjointArrays<T> arrays, KeySource source) {
  const Seed seed = source.seed();
  p.sample.sampler.key = seed.key, p.sample.sampler.salt = seed.salt;
  for (int64_t grid = blockIdx.x; grid < p.pde.batch; grid += gridDim.x) Adjoint<T>(p, arrays, grid).run();
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

int64_t grid_bytes(const ReactionDiffusion& pde, DType dtype, int fields) {
  return fields * pde.height * pde.width * item_size(dtype);
}
// A block for each grid, or as many as have scratch.
unsigned blocks_of(const ReactionDiffusion& pde, DType dtype, int fields) {
  const int64_t bytes = grid_bytes(pde, dtype, fields);
  return blocks_for(pde.batch, 1, bytes <= kSharedBytes ? kMaxBlocksX : (kScratchBytes + bytes - 1) / bytes);
}
int64_t scratch_bytes(const ReactionDiffusion& pde, DType dtype, int fields) {
  const int64_t bytes = grid_bytes(pde, dtype, fields);
  return bytes <= kSharedBytes ? 0 : blocks_of(pde, dtype, fields) * bytes;
}
LaunchConfig config_of(const ReactionDiffusion& pde, DType dtype, int fields, void* stream) {
  const int64_t bytes = grid_bytes(pde, dtype, fields);
  return {dim3(blocks_of(pde, dtype, fields)), dim3(kStepThreads),
          bytes <= kSharedBytes ? static_cast<size_t>(bytes) : 0, stream};
}

template <class T>
Problem<T> problem_of(const ReactionDiffusion& pde, const SketchSpec& spec, DType dtype, int fields,
                      void* workspace) {
  const bool shared = grid_bytes(pde, dtype, fields) <= kSharedBytes;
  return {pde, Euler<T>(pde), StateSample(spec, pde), shared ? nullptr : static_cast<T*>(workspace),
          pde.height * pde.width};
}

SavedLayout layout_of(const ReactionDiffusion& pde, const SketchSpec& spec, DType dtype) {
  return saved_layout(spec, dtype, pde.batch * pde.steps, InnerCells(pde.height, pde.width).count);
}

// f(TypeTag<T>) for the types that states may have.
template <class F>
int visit_real(DType dtype, F&& f) {
  if (dtype == DType::kF32) return f(TypeTag<float>{});
  if (dtype == DType::kF64) return f(TypeTag<double>{});
  return kInvalidValue;
}

}  // namespace

int64_t reaction_diffusion_workspace(const ReactionDiffusionArgs& args) {
  return scratch_bytes(args.pde, args.dtype, kForwardFields);
}

int reaction_diffusion(const ReactionDiffusionArgs& args) {
  const SavedLayout layout = layout_of(args.pde, args.spec, args.dtype);
  auto* bytes = static_cast<char*>(args.saved);
  auto* trailer = bytes ? reinterpret_cast<Trailer*>(bytes + layout.trailer) : nullptr;
  const auto salt = static_cast<int64_t>(args.salt);
  return visit_real(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(simulate_kernel<T>, config_of(args.pde, args.dtype, kForwardFields, args.exec.stream),
                  problem_of<T>(args.pde, args.spec, args.dtype, kForwardFields, args.workspace),
                  static_cast<T*>(args.saved), static_cast<T*>(args.last), static_cast<T*>(args.misfit),
                  KeySource{trailer, salt}, TrailerWriter{trailer, salt, bytes, layout.gaps});
  });
}

int64_t reaction_diffusion_backward_workspace(const ReactionDiffusionBackwardArgs& args) {
  return scratch_bytes(args.pde, args.dtype, kBackwardFields);
}

int reaction_diffusion_backward(const ReactionDiffusionBackwardArgs& args) {
  if (args.pde.batch == 0) return 0;
  const SavedLayout layout = layout_of(args.pde, args.spec, args.dtype);
  const auto* trailer =
      reinterpret_cast<const Trailer*>(static_cast<const char*>(args.saved) + layout.trailer);
  return visit_real(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const AdjointArrays<T> arrays{static_cast<const T*>(args.saved), static_cast<const T*>(args.dlast),
                                  static_cast<const T*>(args.dmisfit), static_cast<T*>(args.du),
                                  static_cast<T*>(args.dsource)};
    return launch(adjoint_kernel<T>, config_of(args.pde, args.dtype, kBackwardFields, args.exec.stream),
                  problem_of<T>(args.pde, args.spec, args.dtype, kBackwardFields, args.workspace), arrays,
                  KeySource{trailer, -1});
  });
}

}  // namespace rad::cuda

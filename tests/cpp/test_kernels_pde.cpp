// reaction_diffusion and its adjoint: the CPU's bits, every way of keeping states, and the definition.
#include "core/reaction_diffusion.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

struct PdeCase {
  DType dtype;
  int64_t num, den;
  int64_t batch, height, width, modes, steps, period;
};

std::vector<char> numbers(DType dtype, int64_t count, uint64_t seed) {
  std::vector<char> v(static_cast<size_t>(count * item_size(dtype)));
  Random random(seed);
  for (int64_t i = 0; i < count; ++i)
    set_item(dtype, v.data(), static_cast<size_t>(i),
             static_cast<double>(random.below(20001) - 10000) / 7000);
  return v;
}

void check_pde(const PdeCase& c, bool keeps = true) {
  const SketchSpec spec{c.num, c.den, Sampling::kDifferent, Draw::kStratified, 0};
  const int64_t cells = c.height * c.width, grids = c.batch * cells;
  const auto u = numbers(c.dtype, grids, 1), source = numbers(c.dtype, grids * c.modes, 2),
             target = numbers(c.dtype, c.modes * cells, 3), clock = numbers(c.dtype, c.period * c.modes, 4),
             dlast = numbers(c.dtype, grids, 5), dmisfit = numbers(c.dtype, grids, 6);
  const Device<char> device_u(u), device_source(source), device_target(target), device_clock(clock),
      device_dlast(dlast), device_dmisfit(dmisfit);
  const ReactionDiffusion host{c.batch, c.height, c.width,  c.modes,       c.steps,       c.period,
                               0.1875,  0.03125,  u.data(), source.data(), target.data(), clock.data()};
  ReactionDiffusion device = host;
  device.u = device_u.data(), device.source = device_source.data();
  device.target = device_target.data(), device.clock = device_clock.data();

  const int64_t inner = InnerCells(c.height, c.width).count;
  auto saved = fresh_saved(spec, c.dtype, c.batch * c.steps, inner);
  Device<char> device_saved(saved);
  std::vector<char> last(u.size()), misfit(u.size());
  Device<char> device_last(u.size()), device_misfit(u.size());
  run_cpu<ReactionDiffusionArgs>(
      cpu::reaction_diffusion_workspace, cpu::reaction_diffusion,
      {{}, spec, c.dtype, host, kSalt, keeps ? saved.data() : nullptr, last.data(), misfit.data(), nullptr});
  run_cuda<ReactionDiffusionArgs>(cuda::reaction_diffusion_workspace, cuda::reaction_diffusion,
                                  {{},
                                   spec,
                                   c.dtype,
                                   device,
                                   kSalt,
                                   keeps ? device_saved.data() : nullptr,
                                   device_last.data(),
                                   device_misfit.data(),
                                   nullptr});
  EXPECT_SAME(device_last.get(), last);
  EXPECT_SAME(device_misfit.get(), misfit);
  EXPECT_SAME(device_saved.get(), saved);
  if (!keeps) return;

  // The last state's row holds the entries that the definition of the sample names.
  const ReferenceSampler sampler{spec, kKey, kSalt, inner};
  const int64_t k = sampler.k(), row = c.batch * c.steps - 1;
  for (int64_t i = 0; row >= 0 && i < k; ++i) {
    const int64_t at = k == inner ? i : sampler.index(row, i), wide = c.width - 2;
    const int64_t cell = (at / wide + 1) * c.width + at % wide + 1;
    EXPECT(get_item(c.dtype, saved.data(), static_cast<size_t>(row * k + i)) ==
               get_item(c.dtype, last.data(), static_cast<size_t>((c.batch - 1) * cells + cell)),
           "entry ", i, " of the last state");
  }

  std::vector<char> du(u.size()), dsource(source.size());
  Device<char> device_du(u.size()), device_dsource(source.size());
  run_cpu<ReactionDiffusionBackwardArgs>(cpu::reaction_diffusion_backward_workspace,
                                         cpu::reaction_diffusion_backward,
                                         {{},
                                          spec,
                                          c.dtype,
                                          host,
                                          saved.data(),
                                          dlast.data(),
                                          dmisfit.data(),
                                          du.data(),
                                          dsource.data(),
                                          nullptr});
  run_cuda<ReactionDiffusionBackwardArgs>(cuda::reaction_diffusion_backward_workspace,
                                          cuda::reaction_diffusion_backward,
                                          {{},
                                           spec,
                                           c.dtype,
                                           device,
                                           device_saved.data(),
                                           device_dlast.data(),
                                           device_dmisfit.data(),
                                           device_du.data(),
                                           device_dsource.data(),
                                           nullptr});
  EXPECT_SAME(device_du.get(), du);
  EXPECT_SAME(device_dsource.get(), dsource);
}

TEST(pde_every_share_of_the_states) {
  for (const DType dtype : {DType::kF32, DType::kF64})
    for (const int64_t num : {1, 2, 37, 100}) check_pde({dtype, num, 100, 2, 7, 9, 3, 5, 3});
}
TEST(pde_shapes) {
  check_pde({DType::kF32, 1, 4, 1, 3, 3, 1, 1, 1});
  check_pde({DType::kF64, 1, 4, 3, 3, 8, 2, 4, 7});
  check_pde({DType::kF32, 1, 10, 1, 33, 33, 3, testing::large ? 40 : 3, 4});
  check_pde({DType::kF32, 1, 3, 0, 5, 5, 1, 2, 1});
}
TEST(pde_states_beyond_shared_memory) {
  check_pde({DType::kF64, 1, 50, 2, 40, testing::large ? 93 : 55, 1, 2, 1});
}
TEST(pde_nothing_kept) { check_pde({DType::kF32, 1, 4, 2, 5, 6, 2, 3, 2}, false); }

}  // namespace

#include <tuple>

#include "core/reaction_diffusion.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

// The inputs, dense, and what the contractions ask about them.
class Inputs {
 public:
  Inputs(const Tensor& u, const Tensor& source, const Tensor& target, const Tensor& clock, int64_t steps,
         double rate, double dt)
      : u_(torch::stable::contiguous(u)),
        source_(torch::stable::contiguous(source)),
        target_(torch::stable::contiguous(target)),
        clock_(torch::stable::contiguous(clock)) {
    RAD_CHECK(u.dim() == 3 && source.dim() == 4 && target.dim() == 3 && clock.dim() == 2,
              "u, source, target and clock must have 3, 4, 3 and 2 dimensions");
    const int64_t batch = u.size(0), height = u.size(1), width = u.size(2), modes = source.size(1);
    RAD_CHECK(height > 2 && width > 2, "u must have inner cells, got ", height, " x ", width);
    RAD_CHECK(source.size(0) == batch && source.size(2) == height && source.size(3) == width && modes > 0,
              "source must be [", batch, ", modes, ", height, ", ", width, "]");
    RAD_CHECK(target.size(0) == modes && target.size(1) == height && target.size(2) == width,
              "target must be [", modes, ", ", height, ", ", width, "]");
    RAD_CHECK(clock.size(0) > 0 && clock.size(1) == modes, "clock must be [period, ", modes, "]");
    RAD_CHECK(steps > 0, "steps must be at least 1, got ", steps);
    for (const Tensor* tensor : {&source, &target, &clock}) {
      RAD_CHECK(tensor->scalar_type() == u.scalar_type() && tensor->is_cuda() == u.is_cuda(),
                "source, target and clock must have the dtype and the device of u");
    }
    RAD_CHECK(dtype() == DType::kF32 || dtype() == DType::kF64, "u must be float32 or float64");
    pde_ = {batch,
            height,
            width,
            modes,
            steps,
            clock.size(0),
            rate,
            dt,
            u_.const_data_ptr(),
            source_.const_data_ptr(),
            target_.const_data_ptr(),
            clock_.const_data_ptr()};
  }

  const ReactionDiffusion& pde() const { return pde_; }
  DType dtype() const { return dtype_of(u_); }
  int64_t rows() const { return pde_.batch * pde_.steps; }
  int64_t inner() const { return InnerCells(pde_.height, pde_.width).count; }
  Tensor grids() const {
    return empty_like_device(u_, {pde_.batch, pde_.height, pde_.width}, u_.scalar_type());
  }
  Tensor fields() const {
    return empty_like_device(u_, {pde_.batch, pde_.modes, pde_.height, pde_.width}, u_.scalar_type());
  }

 private:
  Tensor u_, source_, target_, clock_;
  ReactionDiffusion pde_{};
};

// Every state needs a draw of its own, and no state may be hit twice (docs/maths.md, reaction and diffusion).
SketchSpec checked_spec(const std::vector<int64_t>& numbers) {
  const SketchSpec spec = decode_spec(numbers);
  const bool own = spec.sampling == Sampling::kDifferent && spec.draw == Draw::kStratified;
  RAD_CHECK((own || spec.num == spec.den) && spec.bits == 0,
            "spec must draw `different` entries, stratified and without bits, or keep everything");
  return spec;
}

std::tuple<Tensor, Tensor, Tensor> reaction_diffusion(const Tensor& u, const Tensor& source,
                                                      const Tensor& target, const Tensor& clock,
                                                      int64_t steps, double rate, double dt,
                                                      std::vector<int64_t> spec_numbers, int64_t salt,
                                                      const std::optional<Tensor>& key) {
  check_salt(salt);
  const Inputs inputs(u, source, target, clock, steps, rate, dt);
  const bool keeps = !spec_numbers.empty();
  const SketchSpec spec = keeps ? checked_spec(spec_numbers) : SketchSpec{1, 1, {}, {}, 0};
  Tensor last = inputs.grids(), misfit = inputs.grids();
  Tensor saved = keeps ? Saved::create(u, spec, inputs.dtype(), inputs.rows(), inputs.inner(), key).buffer()
                       : scratch(u, 0);
  const Execution run(u);
  const Backend& backend = backend_of(u);
  ReactionDiffusionArgs args{run.exec(),
                             spec,
                             inputs.dtype(),
                             inputs.pde(),
                             static_cast<uint64_t>(salt),
                             keeps ? saved.mutable_data_ptr() : nullptr,
                             last.mutable_data_ptr(),
                             misfit.mutable_data_ptr(),
                             nullptr};
  const Tensor workspace = scratch(u, backend.reaction_diffusion_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(u, backend.reaction_diffusion(args), "reaction_diffusion");
  return {last, misfit, saved};
}

std::tuple<Tensor, Tensor> reaction_diffusion_backward(const Tensor& dlast, const Tensor& dmisfit,
                                                       const Tensor& u, const Tensor& source,
                                                       const Tensor& target, const Tensor& clock,
                                                       const Tensor& buffer, int64_t steps, double rate,
                                                       double dt, std::vector<int64_t> spec_numbers) {
  const Inputs inputs(u, source, target, clock, steps, rate, dt);
  const SketchSpec spec = checked_spec(spec_numbers);
  const Saved saved(buffer, spec, inputs.dtype(), inputs.rows(), inputs.inner());
  for (const Tensor* gradient : {&dlast, &dmisfit}) {
    RAD_CHECK(gradient->scalar_type() == u.scalar_type() && gradient->numel() == u.numel(),
              "dlast and dmisfit must have the shape and the dtype of u");
  }
  const Tensor dense_last = torch::stable::contiguous(dlast),
               dense_misfit = torch::stable::contiguous(dmisfit);
  Tensor du = inputs.grids(), dsource = inputs.fields();
  const Execution run(u);
  const Backend& backend = backend_of(u);
  ReactionDiffusionBackwardArgs args{run.exec(),
                                     spec,
                                     inputs.dtype(),
                                     inputs.pde(),
                                     saved.data(),
                                     dense_last.const_data_ptr(),
                                     dense_misfit.const_data_ptr(),
                                     du.mutable_data_ptr(),
                                     dsource.mutable_data_ptr(),
                                     nullptr};
  const Tensor workspace = scratch(u, backend.reaction_diffusion_backward_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(u, backend.reaction_diffusion_backward(args), "reaction_diffusion_backward");
  return {du, dsource};
}

}  // namespace

void register_pde(Library& m) {
  m.impl("reaction_diffusion", TORCH_BOX(&reaction_diffusion));
  m.impl("reaction_diffusion_backward", TORCH_BOX(&reaction_diffusion_backward));
}

}  // namespace rad::ops

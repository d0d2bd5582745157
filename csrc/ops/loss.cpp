#include "core/probability.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

Tensor probability_codes(const Tensor& log_p, int64_t bits, int64_t salt, const std::optional<Tensor>& key) {
  check_salt(salt);
  const ProbabilityLayout layout(log_p.numel(), checked_bits(bits));
  Tensor saved = scratch(log_p, layout.bytes);
  auto* data = static_cast<char*>(saved.mutable_data_ptr());
  place_key(log_p, &reinterpret_cast<Trailer*>(data + layout.trailer)->key, key);
  const Tensor dense = torch::stable::contiguous(log_p);
  const Execution run(log_p);
  check_status(log_p,
               backend_of(log_p).probabilities({run.exec(), dtype_of(log_p), static_cast<int32_t>(bits),
                                                static_cast<uint64_t>(salt), dense.const_data_ptr(), data,
                                                log_p.numel()}),
               "probabilities");
  return saved;
}

// The coefficients of the backward contraction, in its order, dense and of the right type and number.
class Coefficients {
 public:
  const void* add(const char* name, const std::optional<Tensor>& given, int64_t count, ScalarType dtype) {
    if (!given) return nullptr;
    RAD_CHECK(given->scalar_type() == dtype && given->numel() == count, name, " must have ", count,
              " elements of the accumulator's type (target: int64), got ", given->numel());
    kept_.push_back(torch::stable::contiguous(*given));
    return kept_.back().const_data_ptr();
  }

 private:
  std::vector<Tensor> kept_;
};

Tensor cross_entropy_backward(const Tensor& saved, const Tensor& scale, const std::optional<Tensor>& hit,
                              const std::optional<Tensor>& level, const std::optional<Tensor>& class_weight,
                              const std::optional<Tensor>& target, std::vector<int64_t> shape,
                              ScalarType dtype, int64_t bits) {
  RAD_CHECK(shape.size() >= 2, "shape must be [outer, classes, ...], got ", shape.size(), " numbers");
  RAD_CHECK(!target == !hit, "target and hit must be given together");
  Tensor dx = empty_like_device(saved, shape, dtype);
  const int64_t n = dx.numel(), outer = shape[0], classes = shape[1];
  const ProbabilityLayout layout(n, checked_bits(bits));
  RAD_CHECK(saved.scalar_type() == ScalarType::Byte && saved.numel() == layout.bytes, "saved must be ",
            layout.bytes, " bytes for ", n, " elements, got ", saved.numel());
  if (n == 0) return dx;
  const ScalarType real = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t rows = n / classes;
  Coefficients coefficients;
  const Execution run(saved);
  CrossEntropyBackwardArgs args{};
  args.exec = run.exec();
  args.dtype = dtype_of(dx);
  args.bits = static_cast<int32_t>(bits);
  args.saved = saved.const_data_ptr();
  args.scale = coefficients.add("scale", scale, rows, real);
  args.hit = coefficients.add("hit", hit, rows, real);
  args.level = coefficients.add("level", level, rows, real);
  args.class_weight = coefficients.add("class_weight", class_weight, classes, real);
  args.target = static_cast<const int64_t*>(coefficients.add("target", target, rows, ScalarType::Long));
  args.dx = dx.mutable_data_ptr();
  args.outer = outer, args.classes = classes, args.inner = rows / outer;
  check_status(saved, backend_of(saved).cross_entropy_backward(args), "cross_entropy_backward");
  return dx;
}

}  // namespace

void register_loss(Library& m) {
  m.impl("probability_codes", TORCH_BOX(&probability_codes));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace rad::ops

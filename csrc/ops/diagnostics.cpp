// The dense estimate behind a saved buffer. Training never calls this.
#include "ops/project.h"
#include "ops/register.h"
#include "ops/saved.h"

namespace rad::ops {
namespace {

Tensor unpack(const Tensor& buffer, std::vector<int64_t> spec_numbers, int64_t rows, int64_t features,
              ScalarType dtype) {
  Tensor out = empty_like_device(buffer, {rows, features}, dtype);
  const Saved saved(buffer, decode_spec(spec_numbers), dtype_of(out), rows, features);
  if (out.numel() == 0) return out;
  if (saved.spec().draw == Draw::kHadamard) return projected_back(saved.lines(0, 0, rows, false), saved);
  const Execution run(buffer);
  const Backend& backend = backend_of(buffer);
  UnpackArgs args{run.exec(), saved.spec(), saved.dtype(),          rows,
                  features,   saved.data(), out.mutable_data_ptr(), nullptr};
  const Tensor workspace = scratch(buffer, backend.unpack_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(buffer, backend.unpack(args), "unpack");
  return out;
}

}  // namespace

void register_diagnostics(Library& m) { m.impl("unpack", TORCH_BOX(&unpack)); }

}  // namespace rad::ops

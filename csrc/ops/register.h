#pragma once
#include "ops/error.h"  // first

#include <torch/csrc/stable/library.h>

namespace rad::ops {

using Library = torch::stable::detail::StableLibrary;

// Each file of ops implements a group of the schema table; one implementation serves every device.
void register_linear(Library& m);
void register_conv(Library& m);
void register_activation(Library& m);
void register_loss(Library& m);
void register_rnn(Library& m);
void register_pool(Library& m);
void register_norm(Library& m);
void register_pde(Library& m);
void register_diagnostics(Library& m);

}  // namespace rad::ops

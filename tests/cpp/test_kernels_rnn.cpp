// Stages of a recurrent step: the CPU's bits, for stored codes and for values, and a definition of the
// gradients.
#include "core/rnn_cell.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr RnnCell kCells[] = {RnnCell::kRelu, RnnCell::kTanh, RnnCell::kLstm, RnnCell::kGru};

std::vector<char> make_values(DType dtype, int64_t n, uint64_t seed, double low, double high) {
  std::vector<char> v(static_cast<size_t>(n * item_size(dtype)));
  Random random(seed);
  for (int64_t i = 0; i < n; ++i)
    set_item(dtype, v.data(), static_cast<size_t>(i), low + (high - low) * random.below(4097) / 4096.0);
  return v;
}

// Numbers within the ranges of what the caller applies between stages, so that gru's sum of n is one of them.
// The buffers of one step, on the host or on the device.
template <template <class> class Memory>
struct Step {
  Memory<char> gates, inputs, h, c, tanh_c, kept, y, codes, lo, step, dh, dc, dgates, dinputs;
  Memory<Trailer> trailer;
};
template <class T>
struct HostMemory : std::vector<T> {
  using std::vector<T>::vector;
  HostMemory(const std::vector<T>& values) : std::vector<T>(values) {}
  std::vector<T> get() const { return *this; }
};
template <class T>
struct DeviceMemory : Device<T> {
  using Device<T>::Device;
};

struct Case {
  RnnCell cell;
  DType dtype;
  int64_t rows, hidden;
  int bits;
};

template <template <class> class Memory>
Step<Memory> make_step(const Case& k) {
  const int64_t n = k.rows * k.hidden, gates = rnn_gates(k.cell), item = item_size(k.dtype);
  const int64_t width = rnn_step_bytes(n, rnn_factor_bits(k.cell, k.bits, k.dtype)), groups = (n + 63) / 64;
  const auto bytes = [](int64_t count) { return std::vector<char>(static_cast<size_t>(count), char{85}); };
  const bool gated = gates > 1;
  return {Memory<char>(make_values(k.dtype, n * gates, 1, gated ? 0 : -1, gated ? 0.5 : 1)),
          Memory<char>(make_values(k.dtype, n * gates, 2, -0.75, 0.75)),
          Memory<char>(make_values(k.dtype, n, 3, -1, 1)),
          Memory<char>(make_values(k.dtype, n, 4, -4, 4)),
          Memory<char>(make_values(k.dtype, n, 5, -1, 1)),
          Memory<char>(bytes(n * item)),
          Memory<char>(bytes(2 * n * item)),
          Memory<char>(bytes(width * rnn_streams(k.cell).count)),
          Memory<char>(bytes(groups * 16)),
          Memory<char>(bytes(groups * 4)),
          Memory<char>(make_values(k.dtype, n, 6, -2, 2)),
          Memory<char>(make_values(k.dtype, n, 7, -2, 2)),
          Memory<char>(bytes(n * gates * item)),
          Memory<char>(bytes(n * gates * item)),
          Memory<Trailer>(std::vector<Trailer>{{kKey, kSalt, kFormatVersion, {}}})};
}

template <class S>
RnnFactors factors_of(const Case& k, S& s) {
  const int64_t n = k.rows * k.hidden, groups = (n + 63) / 64;
  return {k.bits,
          s.trailer.data(),
          12345,
          s.codes.data(),
          rnn_step_bytes(n, rnn_factor_bits(k.cell, k.bits, k.dtype)),
          s.lo.data(),
          groups * (k.dtype == DType::kF64 ? 8 : 4),
          s.step.data(),
          groups * 2};
}

// Every stage in order, without the functions that the caller applies in between: gates are taken as
// activated.
template <class S, class F>
void run_forward(const Case& k, S& s, F&& call) {
  const int stages = k.cell == RnnCell::kRelu ? 1 : k.cell == RnnCell::kTanh ? 2 : 3;
  RnnForwardArgs args{};
  args.dtype = k.dtype, args.cell = k.cell, args.rows = k.rows, args.hidden = k.hidden;
  args.gates = s.gates.data(), args.inputs = s.inputs.data(), args.h = s.h.data(), args.c = s.c.data();
  args.tanh_c = s.tanh_c.data(), args.kept = s.kept.data(), args.factors = factors_of(k, s);
  args.y = s.y.data(), args.y_stride = 2 * k.hidden;
  for (args.stage = k.cell == RnnCell::kRelu ? 0 : 1; args.stage < stages; ++args.stage)
    EXPECT(call(args) == 0);
}

template <class S, class F>
void run_backward(const Case& k, S& s, F&& call) {
  RnnBackwardArgs args{};
  args.dtype = k.dtype, args.cell = k.cell, args.rows = k.rows, args.hidden = k.hidden;
  args.dy = s.y.data(), args.dy_stride = 2 * k.hidden, args.dh = s.dh.data(), args.dc = s.dc.data();
  args.dgates = s.dgates.data(), args.dinputs = s.dinputs.data(), args.factors = factors_of(k, s);
  EXPECT(call(args) == 0);
}

void check_case(const Case& k) {
  auto host = make_step<HostMemory>(k);
  auto device = make_step<DeviceMemory>(k);
  const auto all_same = [&](const char* when) {
    const auto same = [&](const auto& actual, const auto& expected, const char* what) {
      const auto got = actual.get();
      const auto want = expected.get();
      EXPECT(got == want, what, " differ after ", when, ": cell ", static_cast<int>(k.cell), " dtype ",
             static_cast<int>(k.dtype), " rows ", k.rows, " hidden ", k.hidden, " bits ", k.bits);
    };
    same(device.gates, host.gates, "gates"), same(device.inputs, host.inputs, "inputs");
    same(device.h, host.h, "h"), same(device.c, host.c, "c"), same(device.kept, host.kept, "kept");
    same(device.y, host.y, "y"), same(device.codes, host.codes, "codes"), same(device.lo, host.lo, "lo");
    same(device.step, host.step, "steps"), same(device.dh, host.dh, "dh"), same(device.dc, host.dc, "dc");
    same(device.dgates, host.dgates, "dgates"), same(device.dinputs, host.dinputs, "dinputs");
  };
  run_forward(k, host, [](const RnnForwardArgs& args) { return cpu::rnn_forward(args); });
  run_forward(k, device, [](const RnnForwardArgs& args) { return cuda::rnn_forward(args); });
  all_same("forward");
  run_backward(k, host, [](const RnnBackwardArgs& args) { return cpu::rnn_backward(args); });
  run_backward(k, device, [](const RnnBackwardArgs& args) { return cuda::rnn_backward(args); });
  all_same("backward");
}

TEST(rnn_cells_every_dtype_and_tail) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {1, 7}, {3, 11}, {2, 32}, {5, 13}, {7, 37}, {9, 100}};
  for (const RnnCell cell : kCells)
    for (const DType dtype : kDTypes)
      for (const auto& [rows, hidden] : kShapes)
        for (const int bits : {8, 4, 0}) check_case({cell, dtype, rows, hidden, bits});
}

TEST(rnn_cells_few_bits_and_larger) {
  for (const RnnCell cell : kCells) {
    for (const int bits : {1, 2}) check_case({cell, DType::kF32, 3, 43, bits});
    check_case({cell, DType::kF32, testing::large ? 150 : 20, 100, 8});
  }
}

// A stage without anything to keep writes the state alone; sums are those of the definition.
TEST(rnn_forward_without_factors) {
  for (const RnnCell cell : kCells) {
    const Case k{cell, DType::kF32, 5, 13, 8};
    auto host = make_step<HostMemory>(k);
    auto device = make_step<DeviceMemory>(k);
    RnnForwardArgs args{};
    args.dtype = k.dtype, args.cell = cell, args.rows = k.rows, args.hidden = k.hidden;
    const auto gates = host.gates.get(), inputs = host.inputs.get();
    args.gates = device.gates.data(), args.inputs = device.inputs.data(), args.h = device.h.data();
    args.stage = 0;
    EXPECT(cuda::rnn_forward(args) == 0);
    const int64_t columns = (cell == RnnCell::kGru ? 2 : rnn_gates(cell)) * k.hidden;
    const int64_t stride = rnn_gates(cell) * k.hidden;
    const auto sums = cell == RnnCell::kRelu ? device.h.get() : device.gates.get();
    for (int64_t i = 0; i < k.rows * stride; ++i) {
      const auto at = static_cast<size_t>(i);
      const double a = get_item(k.dtype, gates.data(), at), b = get_item(k.dtype, inputs.data(), at);
      double want = i % stride < columns ? rounded(k.dtype, a + b) : a;
      if (cell == RnnCell::kRelu && want < 0) want = 0;
      EXPECT(get_item(k.dtype, sums.data(), at) == want, "element ", i);
    }
    EXPECT_SAME(device.codes.get(), host.codes.get());
    EXPECT_SAME(device.kept.get(), host.kept.get());
    EXPECT_SAME(device.y.get(), host.y.get());
  }
}

// NaN in a fixed range is stored as its least value, in a ranged group as a step of NaN.
TEST(rnn_factors_of_nan) {
  const Case k{RnnCell::kLstm, DType::kF32, 1, 70, 8};
  auto host = make_step<HostMemory>(k);
  auto device = make_step<DeviceMemory>(k);
  auto broken = host.c.get();
  set_item(k.dtype, broken.data(), 66, NAN);
  host.c = HostMemory<char>(broken);
  upload(device.c.data(), broken.data(), broken.size());
  run_forward(k, host, [](const RnnForwardArgs& args) { return cpu::rnn_forward(args); });
  run_forward(k, device, [](const RnnForwardArgs& args) { return cuda::rnn_forward(args); });
  EXPECT(device.codes.get() == host.codes.get());
  EXPECT(device.step.get() == host.step.get());
  uint16_t steps[2];
  std::memcpy(steps, host.step.data(), 4);
  EXPECT((steps[0] & 0x7F80) != 0x7F80 && (steps[1] & 0x7F80) == 0x7F80 && (steps[1] & 0x7F) != 0);
}

}  // namespace

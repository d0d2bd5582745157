// dW of a convolution on tensor cores: for each tap a product over the kept positions of x, whose rows of dy
// are gathered where they meet the tap. Taps lie beside outputs in one dimension of the product.
#include "cuda/conv_product.cuh"

#include "cuda/conv_meetings.cuh"
#include "cuda/conv_plan.cuh"
#include "cuda/regroup.cuh"

namespace rad::cuda {
namespace {

namespace wg = gemm::warpgroups;

// ---- where kept positions lie -----------------------------------------------------------------------------

struct SpotParams {
  ChunkRows dy;
  const int64_t* index;  // rows, or positions where lines are [positions, images]; null: as they lie
  bool by_channel;
  int64_t lines, images, positions;
  Spot* spots;
};

__global__ void __launch_bounds__(kThreads, kResident) spots_kernel(const __grid_constant__ SpotParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.lines; i += step) {
    const int64_t entry = p.by_channel ? i / p.images : i, drawn = p.index ? p.index[entry] : entry;
    int64_t position = p.by_channel ? drawn : drawn % p.positions;
    const int64_t image = p.by_channel ? i % p.images : drawn / p.positions;
    Spot spot{static_cast<uint32_t>(image * p.dy.image), {}};
    bool read = true;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      const AxisMeetings& a = p.dy.axis[d];
      const int64_t at = position % a.axis.input, number = a.of_position(at);
      spot.position[d] = static_cast<int32_t>(number);
      spot.row += p.dy.row_of(d, number);
      read = read && a.reads(at);
      position /= a.axis.input;
    }
    if (!read) spot.position[2] = kNowhere;
    p.spots[i] = spot;
  }
}

// ---- product
// ------------------------------------------------------------------------------------------------

template <class T>
struct ProductParams {
  ChunkRows dy;
  const Spot* spots;
  gemm::AlignedRows<T> x;  // of group 0: the channels of a group, and padding
  int64_t x_group;
  Slices slices;
  int64_t groups, tiles_m, tiles_n, units;
  float* parts;  // [slices, groups, taps * outputs, channels]
};

// A slice of a tile: its first output and channel, its lines, and where its sums go.
struct Unit {
  int64_t output, channel, group, begin, lines, sums;
};
template <class T>
RAD_DEVICE Unit find_unit(const ProductParams<T>& p, int64_t number, int outputs, int channels) {
  const int64_t m = number % p.tiles_m, n = number / p.tiles_m % p.tiles_n;
  const int64_t part = number / p.tiles_m / p.tiles_n, slice = part / p.groups;
  const int64_t begin = p.slices.begin(slice);
  return {m * outputs,
          n * channels,
          part % p.groups,
          begin,
          p.slices.end(slice) - begin,
          part * p.dy.taps * p.dy.outputs * p.x.cols};
}

// Its operands, by `Threads` threads.
template <class T, int Width, int Depth, int Threads>
RAD_DEVICE auto rows_of(const ProductParams<T>& p, const Unit& u, const gemm::Steps<Depth>& steps) {
  return MeetingLoader<Width, Depth, Threads>(p.dy, p.spots + u.begin, steps, u.group, u.output);
}
template <class T, int Width, int Depth, int Threads>
RAD_DEVICE auto lines_of(const ProductParams<T>& p, const Unit& u, const gemm::Steps<Depth>& steps) {
  const gemm::AlignedRows<T> x{p.x.data + u.begin * p.x.stride + u.group * p.x_group, p.x.stride, p.x.cols};
  return gemm::CopyLoader<T, false, Width, Depth, Threads>(x, nullptr, steps, u.channel);
}

// The sums of mma.sync into the unit's matrix [taps * outputs, channels]: lanes along its channels.
template <class T, class Warp>
RAD_DEVICE void store_sums(const ProductParams<T>& p, const Unit& u, const Warp& warp) {
  const int64_t rows = p.dy.taps * p.dy.outputs;
#pragma unroll
  for (int m = 0; m < Warp::kBlocksM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = u.output + warp.output + m * 16 + half * 8 + warp.lane / 4;
      if (row >= rows) continue;
#pragma unroll
      for (int n = 0; n < Warp::kBlocksN; ++n) {
        const int64_t column = u.channel + warp.feature + n * 8 + warp.lane % 4 * 2;
        if (column >= p.x.cols) continue;
        const Vector<float, 2> pair{{warp.sum[m][n][half * 2], warp.sum[m][n][half * 2 + 1]}};
        *reinterpret_cast<Vector<float, 2>*>(p.parts + u.sums + row * p.x.cols + column) = pair;
      }
    }
}

// Those of wgmma, whose rows are channels.
template <class T>
RAD_DEVICE void store_sums(const ProductParams<T>& p, const Unit& u, const wg::Share& share) {
  const int64_t rows = p.dy.taps * p.dy.outputs, first = u.output + share.lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t column =
        u.channel + share.group * wg::kGroupFeatures + share.warp * 16 + half * 8 + share.lane / 4;
    if (column >= p.x.cols) continue;
    float* sums = p.parts + u.sums + first * p.x.cols + column;
#pragma unroll
    for (int n = 0; n < wg::kOutputs / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (first + n * 8 + i < rows) sums[(n * 8 + i) * p.x.cols] = share.sum[n * 4 + half * 2 + i];
  }
}

template <class T, int Channels>
__global__ void __launch_bounds__(128, 2) conv_product_kernel(const __grid_constant__ ProductParams<T> p) {
  constexpr int kCopiers = 128;
  gemm::Shape<kCopiers, Channels> warp;
  for (int64_t number = blockIdx.x; number < p.units; number += gridDim.x) {
    const Unit u = find_unit(p, number, gemm::kOutputs, Channels);
    const gemm::Steps<gemm::kDepth> steps(0, u.lines);
    auto a = rows_of<T, gemm::kOutputs, gemm::kDepth, kCopiers>(p, u, steps);
    auto b = lines_of<T, Channels, gemm::kDepth, kCopiers>(p, u, steps);
    gemm::multiply<T>(steps, 1.f, a, b, warp);
    store_sums(p, u, warp);
  }
}

template <class T>
RAD_DEVICE void bring_units(const ProductParams<T>& p, wg::RingTurn& turn) {
  for (int64_t number = blockIdx.x; number < p.units; number += gridDim.x) {
    const Unit u = find_unit(p, number, wg::kOutputs, gemm::kFeatures);
    const gemm::Steps<wg::kDepth> steps(0, u.lines);
    auto rows = rows_of<T, wg::kOutputs, wg::kDepth, wg::kGroup>(p, u, steps);
    auto lines = lines_of<T, gemm::kFeatures, wg::kDepth, wg::kGroup>(p, u, steps);
    wg::bring(steps, rows, lines, turn);
  }
}

template <class T>
RAD_DEVICE void multiply_units(const ProductParams<T>& p, int group, wg::RingTurn& turn) {
  wg::Share share(group);
  for (int64_t number = blockIdx.x; number < p.units; number += gridDim.x) {
    const Unit u = find_unit(p, number, wg::kOutputs, gemm::kFeatures);
    wg::multiply<T>(gemm::Steps<wg::kDepth>(0, u.lines), 1.f, turn, share);
    store_sums(p, u, share);
  }
}

template <class T>
__global__ void __launch_bounds__(wg::kThreads, 1)
    conv_product_wgmma_kernel([[maybe_unused]] const __grid_constant__ ProductParams<T> p) {
#ifdef RAD_HAS_WGMMA
  CUDA_SHARED(wg::Barriers, ring);
  if (threadIdx.x == 0) wg::init(ring);
  __syncthreads();
  wg::RingTurn turn{ring};
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / wg::kGroup, 0);  // one for the compiler
  if (group == 0)
    bring_units(p, turn);
  else
    multiply_units(p, group - 1, turn);
#endif
}

// ---- sums of slices
// -------------------------------------------------------------------------------------------

template <class T>
struct SumParams {
  Slices slices;
  int64_t groups, taps, outputs, channels;  // of a group
  int64_t padded_outputs, padded_channels;
  const float* parts;
  T* dw;
  int64_t dw_group, dw_output, dw_channel;
};

RAD_DEVICE float weighed_sum(const Slices& slices, const float* part, int64_t stride) {
  float total = 0;
  for (int side = 0, slice = 0; side < 2; ++side) {
    float sum = 0;
    for (int64_t i = 0; i < slices.count[side]; ++i) sum += part[slice++ * stride];
    if (slices.count[side]) total += sum * slices.weight[side];
  }
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_slices_kernel(const __grid_constant__ SumParams<T> p) {
  const int64_t rows = p.groups * p.taps * p.padded_outputs, stride = rows * p.padded_channels;
  const int64_t count = p.groups * p.taps * p.outputs * p.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t c = i % p.channels, o = i / p.channels % p.outputs,
                  tap = i / p.channels / p.outputs % p.taps, group = i / p.channels / p.outputs / p.taps;
    const int64_t row = (group * p.taps + tap) * p.padded_outputs + o;
    p.dw[group * p.dw_group + o * p.dw_output + c * p.dw_channel + tap] =
        narrow<T>(weighed_sum(p.slices, p.parts + row * p.padded_channels + c, stride));
  }
}

// ---- launches
// ---------------------------------------------------------------------------------------------------

// The steps of one call: each a launch, or nothing.
template <class T>
class Call {
 public:
  Call(const ConvWgradArgs& args, const ConvPlan& plan)
      : a_(args), plan_(plan), base_(static_cast<char*>(args.workspace)) {}

  int run() {
    for (const auto step : {&Call::find_spots, &Call::decode_lines, &Call::move_x, &Call::move_dy,
                            &Call::multiply, &Call::sum_slices})
      if (const int status = (this->*step)()) return status;
    return 0;
  }

 private:
  template <class Item>
  Item* at(int64_t offset) const {
    return reinterpret_cast<Item*>(base_ + offset);
  }
  LaunchConfig walk(int64_t items) const {
    return {dim3(blocks_for(items, kThreads, kWalkingBlocks)), dim3(kThreads), 0, a_.exec.stream};
  }

  int find_spots() {
    const SpotParams params{rows_of_dy(),         a_.index,  a_.by_channel,
                            plan_.slices.lines,   a_.images, input_positions(a_.axis),
                            at<Spot>(plan_.spots)};
    return launch(spots_kernel, walk(params.lines), params);
  }

  int decode_lines() {
    if (!plan_.layout.bits) return 0;
    return decode({a_.exec, a_.spec, a_.dtype, false, packed_rows(a_), packed_cols(a_), a_.saved, 0,
                   plan_.layout.lines, at<T>(plan_.decoded)});
  }
  const T* stored() const {
    return plan_.layout.bits ? at<T>(plan_.decoded) : static_cast<const T*>(a_.saved);
  }

  int move_x() {
    if (!plan_.move_x) return 0;
    const int64_t width = plan_.layout.width;
    Regroup how{};
    how.source = contiguous_matrix(stored(), plan_.slices.lines, a_.channels);
    how.images = how.out_row = 1;
    if (a_.by_channel) {  // [images, channels, positions] to [positions, images, channels]
      how.source = {stored(), width, a_.channels, width, {1, 1, width}, {0, 0, 1}};
      how.images = how.out_row = a_.images;
      how.image_stride = a_.channels * width;
      how.out_image = 1;
    }
    how.groups = a_.groups;
    how.group_cols = a_.channels / a_.groups;
    how.padded = plan_.channels;
    how.spots = at<Spot>(plan_.spots);
    how.out = at<uint16_t>(plan_.x);
    return regroup(a_.exec, how);
  }

  int move_dy() {
    if (!plan_.move_dy) return 0;
    const ConvAxis(&axis)[3] = a_.axis;
    Regroup how{};
    how.source = {a_.dy,
                  output_positions(axis),
                  a_.outputs,
                  a_.dy_output,
                  {axis[0].output, axis[1].output, axis[2].output},
                  {axis[0].dy_stride, axis[1].dy_stride, axis[2].dy_stride}};
    how.images = a_.images;
    how.image_stride = a_.dy_image;
    how.out_image = how.source.rows;
    how.out_row = 1;
    how.groups = a_.groups;
    how.group_cols = a_.outputs / a_.groups;
    how.padded = plan_.outputs;
    how.out = at<uint16_t>(plan_.dy);
    return regroup(a_.exec, how);
  }

  ChunkRows rows_of_dy() const {
    ChunkRows rows{{plan_.axis[0], plan_.axis[1], plan_.axis[2]},
                   plan_.move_dy ? at<uint16_t>(plan_.dy) : static_cast<const uint16_t*>(a_.dy),
                   a_.dy_image / gemm::kChunk,
                   {},
                   plan_.outputs / gemm::kChunk,
                   plan_.outputs,
                   plan_.taps};
    int64_t stride = a_.groups * plan_.outputs / gemm::kChunk;
    for (int d = 2; d >= 0; --d) {
      rows.stride[d] = plan_.move_dy ? stride : a_.axis[d].dy_stride / gemm::kChunk;
      stride *= a_.axis[d].output;
    }
    if (plan_.move_dy) rows.image = stride;
    return rows;
  }

  int multiply() {
    const T* x = plan_.move_x ? at<T>(plan_.x) : stored();
    const ProductParams<T> params{
        rows_of_dy(),          at<Spot>(plan_.spots), {x, a_.groups * plan_.channels, plan_.channels},
        plan_.channels,        plan_.slices,          a_.groups,
        plan_.tiles_m,         plan_.tiles_n,         plan_.units,
        at<float>(plan_.parts)};
    const ConvTile& tile = plan_.tile;
    const bool wgmma = tile.depth == wg::kDepth;
    const LaunchConfig config{dim3(blocks_for(plan_.units, 1, int64_t{multiprocessors()} * tile.blocks)),
                              dim3(static_cast<unsigned>(tile.threads)),
                              static_cast<size_t>(wgmma ? wg::kSharedBytes : gemm::kSharedBytes),
                              a_.exec.stream};
    if (wgmma) return launch(conv_product_wgmma_kernel<T>, config, params);
    return tile.features == 64 ? launch(conv_product_kernel<T, 64>, config, params)
                               : launch(conv_product_kernel<T, gemm::kFeatures>, config, params);
  }

  int sum_slices() {
    const int64_t outputs = a_.outputs / a_.groups, channels = a_.channels / a_.groups;
    const SumParams<T> params{plan_.slices,
                              a_.groups,
                              plan_.taps,
                              outputs,
                              channels,
                              plan_.outputs,
                              plan_.channels,
                              at<float>(plan_.parts),
                              static_cast<T*>(a_.dw),
                              a_.dw_group,
                              a_.dw_output,
                              a_.dw_channel};
    return launch(sum_slices_kernel<T>, walk(a_.groups * plan_.taps * outputs * channels), params);
  }

  const ConvWgradArgs& a_;
  const ConvPlan& plan_;
  char* base_;
};

}  // namespace

bool conv_product_pays(const ConvWgradArgs& args) {
  // Products of a tile that tensor cores do while the plain kernel does one. Arithmetic, not measured.
  constexpr int64_t kFaster = 256;
  constexpr int64_t kMostChunks = int64_t{1} << 32;  // of dy, which rows are counted in
  if (item_size(args.dtype) != 2 || args.spec.sampling == Sampling::kDifferent) return false;
  const ConvPlan plan(args, false);
  const int64_t outputs = args.outputs / args.groups, channels = args.channels / args.groups;
  int64_t unmet = 1;  // of as many pairs of a position and a tap one meets
  int64_t chunks = ((args.images - 1) * args.dy_image + args.outputs) / gemm::kChunk;
  for (const ConvAxis& axis : args.axis) {
    if (axis.divisor > kFaster || !AxisMeetings(axis).fits()) return false;
    unmet *= axis.divisor;
    chunks += (axis.output - 1) * axis.dy_stride / gemm::kChunk;
  }
  const int64_t moved = args.images * output_positions(args.axis) * args.groups * plan.outputs / gemm::kChunk;
  const int64_t tile = plan.tile.outputs * plan.tile.features;
  return chunks < kMostChunks && moved < kMostChunks &&
         plan.tiles_m * plan.tiles_n * tile <= kFaster * plan.taps * outputs * channels / unmet;
}

namespace {

ConvPlan plan_of(const ConvWgradArgs& args) {
  const bool bf16s = args.dtype == DType::kBF16;
  const bool wgmma = !args.portable && (bf16s ? wgmma_available<conv_product_wgmma_kernel<bf16>>()
                                              : wgmma_available<conv_product_wgmma_kernel<f16>>());
  ConvPlan plan(args, wgmma);
  plan.lay_out(args);
  return plan;
}

}  // namespace

int64_t conv_product_workspace(const ConvWgradArgs& args) { return plan_of(args).bytes; }

int conv_product(const ConvWgradArgs& args) {
  const ConvPlan plan = plan_of(args);
  return args.dtype == DType::kBF16 ? Call<bf16>(args, plan).run() : Call<f16>(args, plan).run();
}

}  // namespace rad::cuda

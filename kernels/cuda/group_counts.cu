// group_counts: a warp per row, or a block per long row, finds the prediction and updates the counts with atomics.
#include "logit_rows.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

// The maximum and its first position. NaN is larger than any number.
template <class T>
struct Maximum {
  T value;
  int64_t position;

  __device__ __forceinline__ void update(T v, int64_t i) {
    const bool v_is_nan = v != v, value_is_nan = value != value;
    const bool larger = v_is_nan != value_is_nan ? v_is_nan : (v_is_nan || v == value ? i < position : v > value);
    if (larger) {
      value = v;
      position = i;
    }
  }
};

// kLanes: threads per row, a warp or a block.
template <Format kFormat, int kLanes, int kBlock>
__global__ void __launch_bounds__(kBlock) group_counts_kernel(GroupCounts m) {
  using Wide = typename Element<kFormat>::Wide;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t b = int64_t{blockIdx.x} * (kBlock / kLanes) + threadIdx.x / kLanes;
  const bool present = b < m.batch;
  const TypeOf<kFormat>* row = static_cast<const TypeOf<kFormat>*>(m.logits) + (present ? b : 0) * m.row_stride;
  Maximum<Wide> best = {-infinity<Wide>(), INT64_MAX};
  if (present) {
    for_each_vector<kFormat, kLanes>(row, m.classes, is_aligned<kFormat>(m.logits, m.row_stride), lane,
                                     [&](const auto& x, int count, int64_t column) {
                                       for (int j = 0; j < count; ++j) best.update(x[j], column + j);
                                     });
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Wide value = __shfl_xor_sync(0xffffffffu, best.value, distance);
    best.update(value, __shfl_xor_sync(0xffffffffu, best.position, distance));
  }
  __shared__ Maximum<Wide> of_warp[kBlock / kWarp];
  if constexpr (kLanes > kWarp) {
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = best;
    __syncthreads();
    for (int k = 0; k < kBlock / kWarp; ++k) best.update(of_warp[k].value, of_warp[k].position);
  }
  if (!present) return;
  const unsigned long long correct = best.position == m.label[b];
  unsigned long long* counts = reinterpret_cast<unsigned long long*>(m.counts);
  if (m.member == nullptr) {
    const int64_t g = m.group[b];
    if (lane != 0) return;
    if (g < -1 || g >= m.groups) set_error(m.error_flag, kBadIndex);
    if (g < 0 || g >= m.groups) return;
    atomicAdd(counts + 2 * g, correct);
    atomicAdd(counts + 2 * g + 1, 1ull);
    return;
  }
  for (int64_t g = lane; g < m.groups; g += kLanes) {
    if (!m.member[b * m.groups + g]) continue;
    atomicAdd(counts + 2 * g, correct);
    atomicAdd(counts + 2 * g + 1, 1ull);
  }
}

template <Format kFormat>
int launch_counts(const GroupCounts& m, void* stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  if (m.classes < kLongRow) {
    return launch(group_counts_kernel<kFormat, kWarp, kThreads>, (m.batch + kRows - 1) / kRows, kThreads, 0, stream, m);
  }
  return launch(group_counts_kernel<kFormat, kThreads, kThreads>, m.batch, kThreads, 0, stream, m);
}

}  // namespace

int group_counts(const GroupCounts& args, void* stream) {
  if (args.batch == 0) return 0;
  switch (args.format) {
    case Format::f32: return launch_counts<Format::f32>(args, stream);
    case Format::f16: return launch_counts<Format::f16>(args, stream);
    case Format::bf16: return launch_counts<Format::bf16>(args, stream);
    default: return launch_counts<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda

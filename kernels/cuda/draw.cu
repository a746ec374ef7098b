// draw: one thread per sample.
#include "draw.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    draw_kernel(Sequence sequence, int64_t count, DrawOut out, uint32_t* error_flag) {
  __shared__ int64_t cached[kCachedWords];
  cache_tables(sequence, cached);
  __syncthreads();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  Tables tables;
  uint64_t n = 0;
  Drawn drawn = {0, 0, -1, nan_value(), 0};
  if (open_tables(sequence, cached, &tables) && sample_number(sequence, i, &n)) {
    drawn = draw_sample(tables, sequence.seed, n);
  }
  if (drawn.group < 0) set_error(error_flag, kBadTables);
  out.index[i] = drawn.index;
  out.partner[i] = drawn.partner;
  out.group[i] = drawn.group;
  out.lam[i] = drawn.lam;
}

}  // namespace

int draw(const Sequence& sequence, int64_t count, const DrawOut& out, uint32_t* error_flag, void* stream) {
  if (count == 0) return 0;
  return launch(draw_kernel, (count + kThreads - 1) / kThreads, kThreads, 0, stream, sequence, count, out, error_flag);
}

}  // namespace spurmix::cuda

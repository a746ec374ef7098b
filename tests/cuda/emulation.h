// CUDA's thread model on a host, so that the kernels' own code runs in tests without a GPU: a block's threads are
// fibers, run in turn from one barrier or shuffle to the next; blocks follow each other. Barriers that not all threads
// of a block reach, and shuffles that not all lanes of a warp reach, end the launch with an error.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda_runtime.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
struct Dim {
  unsigned x;
};

namespace spurmix::cuda::emulation {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  int64_t barriers, shuffles;  // that it has come to
};

struct Warp {
  int64_t arrived;        // lanes, over all shuffles so far
  uint64_t value[2][32];  // of this shuffle and the one before
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  std::function<void()> body;
  std::vector<unsigned char> shared;
  int64_t at_barrier;  // threads, over all barriers so far
  int count, current;
};

inline Block block;
inline Dim thread_index, block_index, grid_size, block_size;

inline void yield() { swapcontext(&block.fibers[block.current].context, &block.scheduler); }

inline void enter() {
  block.body();
  block.fibers[block.current].done = true;
  yield();
}

inline void barrier() {
  Fiber& fiber = block.fibers[block.current];
  ++block.at_barrier;
  ++fiber.barriers;
  while (block.at_barrier < fiber.barriers * block.count) yield();
}

template <class T>
T exchange(T value, int mask) {
  static_assert(sizeof(T) <= 8);
  const int lane = block.current % 32;
  Fiber& fiber = block.fibers[block.current];
  Warp& warp = block.warps[block.current / 32];
  uint64_t (&slots)[32] = warp.value[fiber.shuffles % 2];
  slots[lane] = 0;
  std::memcpy(&slots[lane], &value, sizeof value);
  ++warp.arrived;
  ++fiber.shuffles;
  while (warp.arrived < fiber.shuffles * 32) yield();
  std::memcpy(&value, &slots[lane ^ mask], sizeof value);
  return value;
}

// Runs one block; whether all its threads ended.
inline bool run_block(int threads) {
  block.count = threads;
  block.at_barrier = 0;
  if (static_cast<int>(block.fibers.size()) < threads) block.fibers.resize(threads);
  block.warps.assign((threads + 31) / 32, {});
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.stack.resize(64 << 10);
    fiber.done = false;
    fiber.barriers = fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  int left = threads;
  while (left > 0) {
    int64_t before = block.at_barrier;
    for (const Warp& warp : block.warps) before += warp.arrived;
    const int had = left;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      if (block.fibers[i].done) continue;
      block.current = i;
      thread_index.x = static_cast<unsigned>(i);
      swapcontext(&block.scheduler, &block.fibers[i].context);
      left += !block.fibers[i].done;
    }
    int64_t after = block.at_barrier;
    for (const Warp& warp : block.warps) after += warp.arrived;
    if (left == had && after == before) return false;
  }
  return true;
}

}  // namespace spurmix::cuda::emulation

#define threadIdx spurmix::cuda::emulation::thread_index
#define blockIdx spurmix::cuda::emulation::block_index
#define gridDim spurmix::cuda::emulation::grid_size
#define blockDim spurmix::cuda::emulation::block_size

inline void __syncthreads() { spurmix::cuda::emulation::barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return spurmix::cuda::emulation::exchange(value, mask);
}
inline void __syncwarp() { spurmix::cuda::emulation::exchange(0, 0); }
template <class T>
T __ldg(const T* at) {
  return *at;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int k = 0; k < 4; ++k)
    out |= static_cast<uint32_t>(bytes >> (8 * ((selector >> (4 * k)) & 7)) & 0xff) << (8 * k);
  return out;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
inline uint32_t atomicOr(uint32_t* at, uint32_t bits) {
  const uint32_t before = *at;
  *at |= bits;
  return before;
}
using std::min;

namespace spurmix::cuda {

inline unsigned char* dynamic_shared() { return emulation::block.shared.data(); }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, void*,
           const Arguments&... arguments) {
  using namespace emulation;
  block.shared.assign(shared + 16, 0xff);
  block.body = [&] { kernel(arguments...); };
  grid_size.x = static_cast<unsigned>(blocks);
  block_size.x = static_cast<unsigned>(threads);
  for (int64_t b = 0; b < blocks; ++b) {
    block_index.x = static_cast<unsigned>(b);
    if (!run_block(threads)) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // namespace spurmix::cuda

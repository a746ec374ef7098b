// Emulates the CUDA thread model on the host, so that tests run the kernels without a GPU. The threads of a block are
// fibers that run in turn, each from one barrier or shuffle to the next. Blocks run one after the other
// (emulation.cpp). A launch fails on a deadlock, where some threads of a block do not reach a barrier or some lanes of
// a warp do not reach a shuffle, and on a data race (races.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda_runtime.h"
#include "races.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local  // races.cpp recognizes shared memory by the TLS segment
#define __launch_bounds__(...)
#define UNWATCHED __attribute__((noinline, no_sanitize("thread")))

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

struct Position {
  Dim thread, block, grid, threads;
};
extern Position position;

void barrier();
void warp_barrier();
// Returns the `value` of lane (this lane ^ mask).
uint64_t exchange(uint64_t value, int mask);
// Runs a kernel. Returns false on a deadlock or a data race.
bool run(int64_t blocks, int threads, size_t shared, std::function<void()> kernel);
unsigned char* shared_memory();

}  // namespace spurmix::cuda::emulation

#define threadIdx spurmix::cuda::emulation::position.thread
#define blockIdx spurmix::cuda::emulation::position.block
#define gridDim spurmix::cuda::emulation::position.grid
#define blockDim spurmix::cuda::emulation::position.threads

namespace races = spurmix::cuda::races;

inline void __syncthreads() { spurmix::cuda::emulation::barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = spurmix::cuda::emulation::exchange(bits, mask);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void __syncwarp() { spurmix::cuda::emulation::warp_barrier(); }
template <class T>
UNWATCHED T __ldg(const T* at) {
  races::record(at, sizeof(T), races::Kind::constant, __builtin_return_address(0));
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
UNWATCHED T atomicAdd(T* at, T value) {
  races::record(at, sizeof(T), races::Kind::atomic, __builtin_return_address(0));
  const T before = *at;
  *at += value;
  return before;
}
UNWATCHED inline uint32_t atomicOr(uint32_t* at, uint32_t bits) {
  races::record(at, sizeof(uint32_t), races::Kind::atomic, __builtin_return_address(0));
  const uint32_t before = *at;
  *at |= bits;
  return before;
}
using std::min;

namespace spurmix::cuda {

inline unsigned char* dynamic_shared() { return emulation::shared_memory(); }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, void*,
           const Arguments&... arguments) {
  const bool ran = emulation::run(blocks, threads, shared, [&] { kernel(arguments...); });
  return ran ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace spurmix::cuda

// Shared by all kernels: launches, conversions, vectorized loads and stores, error flags.
#pragma once

#include "launch.h"

#include <atomic>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"  // emulates the CUDA thread model on the host, for tests
#endif

namespace spurmix::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, void* stream,
           const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
#endif

// Number of blocks for a grid-stride loop with one item per thread.
inline int64_t blocks_for(int64_t items, int threads) {
  const int64_t blocks = (items + threads - 1) / threads;
  return blocks < 1 << 20 ? blocks : 1 << 20;
}

// Number of blocks of kKernel that the current device can run at the same time. Cached for each device and size of
// shared memory.
template <auto kKernel>
int64_t resident_blocks(int threads, size_t shared) {
  struct CacheEntry {
    std::atomic<size_t> shared{0};
    std::atomic<int64_t> blocks{0};
  };
  constexpr int kDevices = 64;
  static CacheEntry cache[kDevices];
  int device = 0, processors = 0, blocks = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (device < kDevices && cache[device].blocks > 0 && cache[device].shared == shared) return cache[device].blocks;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared);
  const int64_t resident = processors > 0 && blocks > 0 ? int64_t{processors} * blocks : 1;
  // Two threads may store a number and a size that do not match. Results do not depend on the number of blocks.
  if (device < kDevices) {
    cache[device].blocks = resident;
    cache[device].shared = shared;
  }
  return resident;
}

// Sets a bit of the error flag.
__device__ __forceinline__ void set_error(uint32_t* error_flag, uint32_t bit) { atomicOr(error_flag, bit); }

// Whether a weight is in [0, 1]. NaN is not.
__device__ __forceinline__ bool is_weight(float lam) { return lam >= 0.0f && lam <= 1.0f; }

// Bit of the error flag of a sample that is not valid.
__device__ __forceinline__ uint32_t sample_error(bool valid_indices) { return valid_indices ? kBadValue : kBadIndex; }

__device__ __forceinline__ float nan_value() { return bits_float(0x7fc00000u); }

// Vectorized load of 16 bytes through the read-only cache.
__device__ __forceinline__ uint4 load16(const void* at) { return __ldg(static_cast<const uint4*>(at)); }

// Prefetches into the L2 cache.
__device__ __forceinline__ void prefetch(const void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#else
  static_cast<void>(at);
#endif
}

// Byte k of a word as a float, plus 2^23. A byte permutation is faster than an integer-to-float conversion, and exact.
__device__ __forceinline__ float shifted_byte(uint32_t word, int k) {
  return bits_float(__byte_perm(word, 0x4B000000u, 0x7440u | static_cast<uint32_t>(k)));
}
constexpr float kShift = 8388608.0f;
__device__ __forceinline__ float byte_value(uint32_t word, int k) { return shifted_byte(word, k) - kShift; }

// Type of an element in memory, and its conversion to and from Wide, the type of the arithmetic.
template <Format kFormat>
struct Element;

template <>
struct Element<Format::f32> {
  using Type = float;
  using Wide = float;
  static __device__ __forceinline__ float load(float v) { return v; }
  static __device__ __forceinline__ float store(float v) { return v; }
};

template <>
struct Element<Format::f64> {
  using Type = double;
  using Wide = double;
  static __device__ __forceinline__ double load(double v) { return v; }
  static __device__ __forceinline__ double store(double v) { return v; }
};

template <>
struct Element<Format::f16> {
  using Type = uint16_t;
  using Wide = float;
#if defined(__CUDA_ARCH__)
  static __device__ __forceinline__ float load(uint16_t v) { return __half2float(__ushort_as_half(v)); }
  static __device__ __forceinline__ uint16_t store(float v) { return __half_as_ushort(__float2half_rn(v)); }
#else
  static __device__ __forceinline__ float load(uint16_t v) { return from_half(v); }
  static __device__ __forceinline__ uint16_t store(float v) { return to_half(v); }
#endif
  static __device__ __forceinline__ uint16_t store(double v) { return store(static_cast<float>(v)); }
};

template <>
struct Element<Format::bf16> {
  using Type = uint16_t;
  using Wide = float;
#if defined(__CUDA_ARCH__)
  static __device__ __forceinline__ float load(uint16_t v) { return __bfloat162float(__ushort_as_bfloat16(v)); }
  static __device__ __forceinline__ uint16_t store(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
#else
  static __device__ __forceinline__ float load(uint16_t v) { return from_bfloat16(v); }
  static __device__ __forceinline__ uint16_t store(float v) { return to_bfloat16(v); }
#endif
  static __device__ __forceinline__ uint16_t store(double v) { return store(static_cast<float>(v)); }
};

template <Format kFormat>
using TypeOf = typename Element<kFormat>::Type;

// Stores two adjacent values at once: 4 bytes for half types, 8 for float.
template <Format kFormat>
__device__ __forceinline__ void store_two(TypeOf<kFormat>* at, float a, float b) {
  if constexpr (kFormat == Format::f32) {
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
  } else {
    const uint32_t low = Element<kFormat>::store(a), high = Element<kFormat>::store(b);
    *reinterpret_cast<uint32_t*>(at) = low | high << 16;
  }
}

// Stores sixteen values per lane to `at`, if `active`. The addresses of a pair of lanes (even, odd) must be
// consecutive. The lanes exchange halves, so that their two 16-byte stores fill a whole 32-byte sector. All lanes of
// the warp must call this.
template <Format kFormat>
__device__ __forceinline__ void store_sixteen(TypeOf<kFormat>* at, const float (&value)[16], bool active) {
  constexpr int kPerVector = kFormat == Format::f32 ? 4 : 8;  // values in 16 bytes
  const bool odd = threadIdx.x & 1;
  const bool neighbor_active = __shfl_xor_sync(0xffffffffu, static_cast<int>(active), 1);
  TypeOf<kFormat>* even_at = odd ? at - 16 : at;
#pragma unroll
  for (int sector = 0; sector < 16 / (2 * kPerVector); ++sector) {
    uint32_t piece[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* from = &value[(2 * sector + half) * kPerVector];
        if constexpr (kFormat == Format::f32) {
          piece[half][w] = float_bits(from[w]);
        } else {
          const uint32_t low = Element<kFormat>::store(from[2 * w]), high = Element<kFormat>::store(from[2 * w + 1]);
          piece[half][w] = low | high << 16;
        }
      }
    }
    uint32_t first[4], second[4];  // for the sector of the even lane, and for that of the odd lane
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? piece[0][w] : piece[1][w], 1);
      first[w] = odd ? received : piece[0][w];
      second[w] = odd ? piece[1][w] : received;
    }
    uint4* to = reinterpret_cast<uint4*>(even_at + (2 * sector + odd) * kPerVector);
    if (odd ? neighbor_active : active) *to = make_uint4(first[0], first[1], first[2], first[3]);
    if (odd ? active : neighbor_active) to[16 / kPerVector] = make_uint4(second[0], second[1], second[2], second[3]);
  }
}

}  // namespace spurmix::cuda

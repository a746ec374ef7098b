// What the kernels share: launching, conversions, wide loads and stores, flags.
#pragma once

#include "launch.h"

#include <atomic>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"  // CUDA's thread model on a host, for tests
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

// Blocks of a kernel whose threads take an item each; it goes round again for those beyond.
inline int64_t blocks_for(int64_t items, int threads) {
  const int64_t blocks = (items + threads - 1) / threads;
  return blocks < 1 << 20 ? blocks : 1 << 20;
}

// How many blocks of kKernel the current device runs at once; looked up once for each device and size of shared
// memory.
template <auto kKernel>
int64_t resident_blocks(int threads, size_t shared) {
  struct Known {
    std::atomic<size_t> shared{0};
    std::atomic<int64_t> blocks{0};
  };
  constexpr int kDevices = 64;
  static Known known[kDevices];
  int device = 0, processors = 0, blocks = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (device < kDevices && known[device].blocks > 0 && known[device].shared == shared) return known[device].blocks;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared);
  const int64_t found = processors > 0 && blocks > 0 ? int64_t{processors} * blocks : 1;
  if (device <
      kDevices) {  // a race stores a number that suits another size: any number of blocks gives the same result
    known[device].blocks = found;
    known[device].shared = shared;
  }
  return found;
}

__device__ __forceinline__ void raise(uint32_t* flag, uint32_t bit) { atomicOr(flag, bit); }

__device__ __forceinline__ float nan_value() { return bits_float(0x7fc00000u); }

// Sixteen bytes, read past the coherent path.
__device__ __forceinline__ uint4 load16(const void* at) { return __ldg(static_cast<const uint4*>(at)); }

// Memory that is read soon, on its way into the L2 cache.
__device__ __forceinline__ void prefetch(const void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#else
  static_cast<void>(at);
#endif
}

// Byte k of a word as a float + 2^23: exact, by a permutation of bytes instead of the slower conversion.
__device__ __forceinline__ float shifted_byte(uint32_t word, int k) {
  return bits_float(__byte_perm(word, 0x4B000000u, 0x7440u | static_cast<uint32_t>(k)));
}
constexpr float kShift = 8388608.0f;
__device__ __forceinline__ float byte_value(uint32_t word, int k) { return shifted_byte(word, k) - kShift; }

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

// Two neighbouring values as one store: 4 bytes of a half type, 8 of float.
template <Format kFormat>
__device__ __forceinline__ void store_two(TypeOf<kFormat>* at, float a, float b) {
  if constexpr (kFormat == Format::f32) {
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
  } else {
    const uint32_t low = Element<kFormat>::store(a), high = Element<kFormat>::store(b);
    *reinterpret_cast<uint32_t*>(at) = low | high << 16;
  }
}

// Sixteen values of each lane, which lie behind one another for a pair of lanes (even, odd): `at` is where this lane's
// begin. Each store of 16 bytes fills whole sectors of 32 with the neighbour's. All lanes of a warp take part.
template <Format kFormat>
__device__ __forceinline__ void store_sixteen(TypeOf<kFormat>* at, const float (&value)[16], bool mine) {
  constexpr int kEach = kFormat == Format::f32 ? 4 : 8;  // values in 16 bytes
  const bool odd = threadIdx.x & 1;
  const bool neighbours = __shfl_xor_sync(0xffffffffu, static_cast<int>(mine), 1);
  TypeOf<kFormat>* even_at = odd ? at - 16 : at;
#pragma unroll
  for (int sector = 0; sector < 16 / (2 * kEach); ++sector) {
    uint32_t piece[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* from = &value[(2 * sector + half) * kEach];
        if constexpr (kFormat == Format::f32) {
          piece[half][w] = float_bits(from[w]);
        } else {
          const uint32_t low = Element<kFormat>::store(from[2 * w]), high = Element<kFormat>::store(from[2 * w + 1]);
          piece[half][w] = low | high << 16;
        }
      }
    }
    uint32_t first[4], second[4];  // of the even lane's sector, then of the odd lane's
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? piece[0][w] : piece[1][w], 1);
      first[w] = odd ? other : piece[0][w];
      second[w] = odd ? piece[1][w] : other;
    }
    uint4* to = reinterpret_cast<uint4*>(even_at + (2 * sector + odd) * kEach);
    if (odd ? neighbours : mine) *to = make_uint4(first[0], first[1], first[2], first[3]);
    if (odd ? mine : neighbours) to[16 / kEach] = make_uint4(second[0], second[1], second[2], second[3]);
  }
}

}  // namespace spurmix::cuda

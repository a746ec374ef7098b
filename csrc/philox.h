// Philox4x32-10 (Salmon et al. 2011) and helpers for 64-bit integers and the bits of floats, for host and device.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SPURMIX_HD __host__ __device__ __forceinline__
#else
#define SPURMIX_HD inline __attribute__((always_inline))
#endif

namespace spurmix {

struct Words {
  uint32_t v[4];
};

// High 64 bits of a * b.
SPURMIX_HD uint64_t mulhi64(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#elif defined(__SIZEOF_INT128__)
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#else
  const uint64_t al = static_cast<uint32_t>(a), ah = a >> 32, bl = static_cast<uint32_t>(b), bh = b >> 32;
  const uint64_t middle = ah * bl + ((al * bl) >> 32), cross = al * bh + static_cast<uint32_t>(middle);
  return ah * bh + (middle >> 32) + (cross >> 32);
#endif
}

// High 32 bits of a * b.
SPURMIX_HD uint32_t mulhi32(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

SPURMIX_HD float bits_float(uint32_t u) {
  float v;
  memcpy(&v, &u, 4);
  return v;
}

SPURMIX_HD double bits_double(int64_t u) {
  double v;
  memcpy(&v, &u, 8);
  return v;
}

SPURMIX_HD int bit_length(uint64_t x) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(x));
#else
  return x ? 64 - __builtin_clzll(x) : 0;
#endif
}

SPURMIX_HD Words philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = static_cast<uint64_t>(0xD2511F53u) * c0, q = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(q >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(q);
    c3 = static_cast<uint32_t>(p);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The random words of sample n in counter block `block`.
SPURMIX_HD Words sample_words(uint64_t seed, uint64_t n, uint32_t block) {
  return philox(seed, static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32), block, 0);
}

}  // namespace spurmix

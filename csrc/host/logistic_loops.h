// Loops of the logistic regression over vectors of rows, compiled for two instruction sets. Include once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace spurmix::host {

constexpr int64_t kLanes = 8, kBlock = 4;  // floats per vector, columns per block

using Floats = float __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
using Words = uint32_t __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPURMIX_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define SPURMIX_CLONES
#endif
#define SPURMIX_INLINE inline __attribute__((always_inline))

// Columns hold two rows per word: row i + k in the low half of word k, and row i + k + kLanes in the high half.
SPURMIX_INLINE void widen(const uint16_t* from, Floats& low, Floats& high) {
  const Words both = *reinterpret_cast<const Words*>(from), shifted = both << 16, masked = both & 0xFFFF0000u;
  std::memcpy(&low, &shifted, sizeof low);
  std::memcpy(&high, &masked, sizeof high);
}

SPURMIX_INLINE float sum_of(const Floats& v) {
  float sum = 0;
  for (int k = 0; k < kLanes; ++k) sum += v[k];
  return sum;
}

inline uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

SPURMIX_CLONES static float dot(const float* a, const float* b, int64_t padded) {
  Floats sum0 = {}, sum1 = {};
  for (int64_t j = 0; j < padded; j += 2 * kLanes) {
    sum0 += *reinterpret_cast<const Floats*>(a + j) * *reinterpret_cast<const Floats*>(b + j);
    sum1 += *reinterpret_cast<const Floats*>(a + j + kLanes) * *reinterpret_cast<const Floats*>(b + j + kLanes);
  }
  return sum_of(sum0 + sum1);
}

SPURMIX_CLONES static void add_multiple(float factor, const float* a, float* out, int64_t padded) {
  for (int64_t j = 0; j < padded; ++j) out[j] += factor * a[j];
}

// Gram matrix of four columns, weighted by the curvature.
SPURMIX_CLONES static void weighted_gram(const uint16_t* const* column, const float* curvature, int64_t padded,
                                         double (*gram)[kBlock]) {
  double total[kBlock][kBlock] = {};
  for (int64_t start = 0; start < padded; start += 4096) {
    Floats sums[kBlock][kBlock] = {};
    for (int64_t i = start; i < std::min(padded, start + 4096); i += 2 * kLanes) {
      Floats low[kBlock], high[kBlock];
      const Floats weight_low = *reinterpret_cast<const Floats*>(curvature + i);
      const Floats weight_high = *reinterpret_cast<const Floats*>(curvature + i + kLanes);
      for (int a = 0; a < kBlock; ++a) widen(column[a] + i, low[a], high[a]);
      for (int a = 0; a < kBlock; ++a) {
        const Floats scaled_low = weight_low * low[a], scaled_high = weight_high * high[a];
        for (int b = 0; b <= a; ++b) sums[a][b] += scaled_low * low[b] + scaled_high * high[b];
      }
    }
    for (int a = 0; a < kBlock; ++a)
      for (int b = 0; b <= a; ++b) total[a][b] += sum_of(sums[a][b]);
  }
  for (int a = 0; a < kBlock; ++a)
    for (int b = 0; b <= a; ++b) gram[a][b] = gram[b][a] = total[a][b];
}

// Products of four columns with u.
SPURMIX_CLONES static void products(const uint16_t* const* column, const float* u, int64_t padded, double* out) {
  Floats sums[kBlock] = {};
  for (int64_t i = 0; i < padded; i += 2 * kLanes) {
    const Floats u_low = *reinterpret_cast<const Floats*>(u + i);
    const Floats u_high = *reinterpret_cast<const Floats*>(u + i + kLanes);
    for (int a = 0; a < kBlock; ++a) {
      Floats low, high;
      widen(column[a] + i, low, high);
      sums[a] += low * u_low;
      sums[a] += high * u_high;
    }
  }
  for (int a = 0; a < kBlock; ++a) out[a] = sum_of(sums[a]);
}

// A block of columns times the changes of its weights.
SPURMIX_INLINE void combine(const uint16_t* const* column, const float* change, int64_t i, Floats& low, Floats& high) {
  low = high = Floats{};
  for (int a = 0; a < kBlock; ++a) {
    Floats c_low, c_high;
    widen(column[a] + i, c_low, c_high);
    low += change[a] * c_low;
    high += change[a] * c_high;
  }
}

// margin += sum and product += curvature * sum, where sum is a block of columns times the changes of its weights
SPURMIX_CLONES static void move(const uint16_t* const* column, const float* change, const float* curvature,
                                float* margin, float* product, int64_t padded) {
  for (int64_t i = 0; i < padded; i += 2 * kLanes) {
    Floats sums[2];
    combine(column, change, i, sums[0], sums[1]);
    for (int64_t k = 0; k < 2; ++k) {
      *reinterpret_cast<Floats*>(margin + i + k * kLanes) += sums[k];
      *reinterpret_cast<Floats*>(product + i + k * kLanes) +=
          *reinterpret_cast<const Floats*>(curvature + i + k * kLanes) * sums[k];
    }
  }
}

// out += factor * a * b
SPURMIX_CLONES static void add_product(float factor, const float* a, const float* b, float* out, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) out[i] += factor * a[i] * b[i];
}

}  // namespace spurmix::host

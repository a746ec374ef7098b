#include "pixels.h"

#include <algorithm>
#include <cstring>

#include "crc32.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace spurmix::host {
namespace {

#if defined(__x86_64__)
constexpr int64_t kPrefetch = 3072;  // bytes ahead of the store

#pragma GCC push_options
#pragma GCC target("ssse3")

// Packs four pixels at a time with a byte shuffle. Each store writes four bytes too many, which the next store
// overwrites, so the last pixels are left to the caller. Returns the number of packed pixels. The output is prefetched
// because it is rarely in a cache.
int64_t pack_by_shuffles(const uint8_t* pixels, int64_t count, uint8_t* to) {
  const __m128i three_of_four = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  int64_t k = 0;
  for (; k + 18 <= count; k += 16) {
    __builtin_prefetch(to + 3 * k + kPrefetch, 1);
    for (int64_t j = k; j < k + 16; j += 4) {
      const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + 4 * j));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * j), _mm_shuffle_epi8(four, three_of_four));
    }
  }
  return k;
}

#pragma GCC pop_options
#endif

constexpr int64_t kPiece = 2048;  // pixels, which fit the first-level cache

void pack(const uint8_t* pixels, int64_t count, uint8_t* to) {
  int64_t k = 0;
#if defined(__x86_64__)
  static const bool shuffles = __builtin_cpu_supports("ssse3");
  if (shuffles) k = pack_by_shuffles(pixels, count, to);
#endif
  for (; k < count; ++k) std::memcpy(to + 3 * k, pixels + 4 * k, 3);
}

}  // namespace

uint32_t pack_rgb(const uint8_t* pixels, int64_t count, uint8_t* to, uint32_t crc) {
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t size = std::min(count - at, kPiece);
    pack(pixels + 4 * at, size, to + 3 * at);
    crc = crc32(crc, to + 3 * at, 3 * size);
  }
  return crc;
}

}  // namespace spurmix::host

#include "crc32.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace spurmix::host {
namespace {

constexpr int64_t kPiece = int64_t{256} << 10;  // bytes per read, which fit the second-level cache

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t n = 0; n < 256; ++n) {
    uint32_t c = n;
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (c & 1 ? 0xEDB88320u : 0u);
    table[n] = c;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

// One byte at a time. `crc` is the remainder before the final inversion.
uint32_t by_bytes(uint32_t crc, const uint8_t* data, int64_t size) {
  for (int64_t k = 0; k < size; ++k) crc = kTable[(crc ^ data[k]) & 0xFF] ^ (crc >> 8);
  return crc;
}

// The product of two polynomials modulo the CRC's polynomial. Bit 31 is the coefficient of x^0.
uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (a & bit) sum ^= b;
    b = (b >> 1) ^ (b & 1 ? 0xEDB88320u : 0u);
  }
  return sum;
}

#if defined(__x86_64__)

// x^bits modulo the polynomial, reflected and in 33 bits, as the carry-less product instruction takes it.
constexpr int64_t power_of_x(int bits) {
  uint32_t power = 0x80000000u;
  for (int k = 0; k < bits; ++k) power = (power >> 1) ^ (power & 1 ? 0xEDB88320u : 0u);
  return static_cast<int64_t>(power) << 1;
}

#pragma GCC push_options
#pragma GCC target("avx512f,vpclmulqdq")

// x times x^bits modulo the polynomial, plus `next`, for each 16 bytes. `powers` holds the factors of both halves.
inline __m512i fold_wide(__m512i x, __m512i powers, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(x, powers, 0x00), high = _mm512_clmulepi64_epi128(x, powers, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

// Folds `data` with sixteen lanes of 16 bytes. `lane` holds the first 64 of `size` bytes, at least 256, and receives
// the result. Returns the number of bytes that are folded.
int64_t by_wide_products(__m128i* lane, const uint8_t* data, int64_t size) {
  const __m512i across_256 = _mm512_broadcast_i32x4(_mm_set_epi64x(power_of_x(2048 - 32), power_of_x(2048 + 32)));
  const __m512i across_64 = _mm512_broadcast_i32x4(_mm_set_epi64x(power_of_x(512 - 32), power_of_x(512 + 32)));
  __m512i wide[4] = {_mm512_loadu_si512(lane)};
  for (int k = 1; k < 4; ++k) wide[k] = _mm512_loadu_si512(data + 64 * k);
  int64_t at = 256;
  for (; at + 256 <= size; at += 256) {
    for (int k = 0; k < 4; ++k) wide[k] = fold_wide(wide[k], across_256, _mm512_loadu_si512(data + at + 64 * k));
  }
  for (int k = 1; k < 4; ++k) wide[0] = fold_wide(wide[0], across_64, wide[k]);
  _mm512_storeu_si512(lane, wide[0]);
  return at;
}

#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("pclmul,sse4.1")

// Like fold_wide, for one lane.
inline __m128i fold(__m128i x, __m128i powers, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(x, powers, 0x00), high = _mm_clmulepi64_si128(x, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

inline __m128i load(const uint8_t* data) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data)); }

// Uses carry-less products, see Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (2009).
// Folds sixteen lanes of 16 bytes if the processor supports it, then four, then one, and ends with Barrett's reduction.
// `size` is a multiple of 16 and at least 64.
uint32_t by_products(uint32_t crc, const uint8_t* data, int64_t size) {
  static const bool wide = __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f");
  const __m128i across_64 = _mm_set_epi64x(power_of_x(512 - 32), power_of_x(512 + 32));
  const __m128i across_16 = _mm_set_epi64x(power_of_x(128 - 32), power_of_x(128 + 32));
  __m128i lane[4];
  for (int k = 0; k < 4; ++k) lane[k] = load(data + 16 * k);
  lane[0] = _mm_xor_si128(lane[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
  int64_t at = wide && size >= 256 ? by_wide_products(lane, data, size) : 64;
  for (; at + 64 <= size; at += 64) {
    for (int k = 0; k < 4; ++k) lane[k] = fold(lane[k], across_64, load(data + at + 16 * k));
  }
  __m128i x = lane[0];
  for (int k = 1; k < 4; ++k) x = fold(x, across_16, lane[k]);
  for (; at < size; at += 16) x = fold(x, across_16, load(data + at));
  const __m128i words = _mm_setr_epi32(-1, 0, -1, 0);
  x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, across_16, 0x10));
  const __m128i high = _mm_srli_si128(x, 4);
  x = _mm_xor_si128(high, _mm_clmulepi64_si128(_mm_and_si128(x, words), _mm_cvtsi64_si128(power_of_x(64)), 0x00));
  const __m128i polynomial = _mm_set_epi64x(0x1f7011641, 0x1db710641);
  __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(x, words), polynomial, 0x10);
  quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, words), polynomial, 0x00);
  return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(x, quotient), 1));
}

#pragma GCC pop_options
#endif

}  // namespace

uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t size) {
  crc = ~crc;
  int64_t done = 0;
#if defined(__x86_64__)
  static const bool products = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  if (products && size >= 64) {
    done = size / 16 * 16;
    crc = by_products(crc, data, done);
  }
#endif
  return ~by_bytes(crc, data + done, size - done);
}

uint32_t crc32_joined(uint32_t first, uint32_t second, int64_t size) {
  uint32_t power = 0x00800000u;  // x^8: the factor of one further byte
  for (; size > 0; size >>= 1) {
    if (size & 1) first = product(first, power);
    power = product(power, power);
  }
  return first ^ second;
}

uint32_t file_crc32(int fd, int64_t begin, int64_t size, int64_t* count, int* error) {
  std::vector<uint8_t> piece(static_cast<size_t>(std::min(size, kPiece)));
  uint32_t crc = 0;
  *error = 0;
  *count = 0;
  while (*count < size) {
    const int64_t chunk = std::min(size - *count, kPiece);
    const ssize_t got = pread(fd, piece.data(), static_cast<size_t>(chunk), static_cast<off_t>(begin + *count));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) *error = errno;
    if (got <= 0) break;
    crc = crc32(crc, piece.data(), got);
    *count += got;
  }
  return crc;
}

}  // namespace spurmix::host

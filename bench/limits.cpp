// Memory and disk limits: kernels that access the same bytes as an operator and compute almost nothing.
//
// Compiled for the machine that runs them (-march=native). Threads come from OpenMP, as the operators' threads do.
// torch uses the same runtime, so no second pool of threads competes for the cores.
#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace {

#if defined(__AVX512F__)
using Vector = __m512i;
inline Vector load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store(uint8_t* p, Vector v) { _mm512_storeu_si512(p, v); }
inline void stream(uint8_t* p, Vector v) { _mm512_stream_si512(reinterpret_cast<Vector*>(p), v); }
#else
using Vector = __m256i;
inline Vector load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Vector*>(p)); }
inline void store(uint8_t* p, Vector v) { _mm256_storeu_si256(reinterpret_cast<Vector*>(p), v); }
inline void stream(uint8_t* p, Vector v) { _mm256_stream_si256(reinterpret_cast<Vector*>(p), v); }
#endif
constexpr int64_t kWidth = sizeof(Vector);

enum Store { kPlain, kStream, kString };  // stores into the caches, non-temporal stores, `rep stosb`

template <Store kStore>
void fill(uint8_t* out, int64_t bytes, Vector v) {
  if (kStore == kString) {
    const int value = _mm_cvtsi128_si32(*reinterpret_cast<const __m128i*>(&v));
    asm volatile("rep stosb" : "+D"(out), "+c"(bytes) : "a"(value) : "memory");
    return;
  }
  for (int64_t i = 0; i < bytes; i += kWidth) kStore == kStream ? stream(out + i, v) : store(out + i, v);
}

// Reads `bytes` of `a` and of `b`, writes bytes * size to `out`, in `planes` ranges side by side. Each block of `block`
// input bytes is folded into one vector, which then fills the block's output. `ahead`: distance of a prefetch, or 0.
template <Store kStore>
void copy(const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t bytes, int64_t size, int64_t planes, int64_t block,
          int64_t ahead) {
  const int64_t plane = bytes * size / planes;
  for (int64_t at = 0; at < bytes; at += block) {
    const int64_t end = std::min(at + block, bytes);
    for (int64_t i = at + ahead; ahead && i < std::min(end + ahead, bytes); i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(a + i), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(b + i), _MM_HINT_T0);
    }
    Vector v{};
    for (int64_t i = at; i < end; i += kWidth) v ^= load(a + i) ^ load(b + i);
    const int64_t from = at * size / planes, to = end * size / planes;
    for (int64_t p = 0; p < planes; ++p) fill<kStore>(out + p * plane + from, to - from, v);
  }
  if (kStore == kStream) _mm_sfence();
}

}  // namespace

extern "C" int64_t vector_bytes() { return kWidth; }

// Rows `index` and `partner` of `rows`, of `bytes` each, to rows of bytes * size; `repeats` times.
extern "C" void memory_limit(const uint8_t* rows, const int64_t* index, const int64_t* partner, uint8_t* out,
                             int64_t batch, int64_t bytes, int64_t size, int64_t planes, int64_t store, int64_t block,
                             int64_t ahead, int64_t repeats, int64_t threads) {
  const auto run = store == kPlain ? copy<kPlain> : store == kStream ? copy<kStream> : copy<kString>;
  for (int64_t k = 0; k < repeats; ++k) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < batch; ++n) {
      run(rows + index[n] * bytes, rows + partner[n] * bytes, out + n * bytes * size, bytes, size, planes, block,
          ahead);
    }
  }
}

// Rows of `row` bytes at `offsets` of a file, read with O_DIRECT in that order into `slots` slots of `memory`, of
// `slot` bytes each. Returns the number of bytes read, in whole pages.
extern "C" int64_t disk_limit(int direct, const int64_t* offsets, int64_t count, int64_t row, uint8_t* memory,
                              int64_t slot, int64_t slots, int64_t threads) {
  std::atomic<int64_t> next{0}, bytes{0};
#pragma omp parallel num_threads(threads)
  for (int64_t k; (k = next.fetch_add(1)) < count;) {
    const int64_t begin = offsets[k] / 4096 * 4096, end = (offsets[k] + row + 4095) / 4096 * 4096;
    bytes += pread(direct, memory + k % slots * slot, static_cast<size_t>(end - begin), begin);
  }
  return bytes;
}

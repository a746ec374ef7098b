// What the memory can do: the addresses of an uncropped image batch in the same order, and no arithmetic to speak of.
#include <immintrin.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

template <class Work>
void in_threads(int64_t count, int threads, const Work& work) {
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back([&, t] { work(count * t / threads, count * (t + 1) / threads); });
  work(0, count / threads);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace

// Per 32 pixels of NHWC images [N, pixels, 3]: 96 bytes read from both images, then whole lines written past the caches
// to three planes, or to one run of pixels; `size` bytes an output value.
extern "C" void image_limit(const uint8_t* images, const int64_t* index, const int64_t* partner, uint8_t* out,
                            int64_t batch, int64_t pixels, int64_t size, int planes, int threads) {
  in_threads(batch, threads, [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const uint8_t *a = images + index[n] * pixels * 3, *b = images + partner[n] * pixels * 3;
      uint8_t* o = out + n * pixels * 3 * size;
      for (int64_t p = 0; p + 32 <= pixels; p += 32) {
        __m256i v[3];
        for (int k = 0; k < 3; ++k) {
          v[k] = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + 3 * p + 32 * k)),
                                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 3 * p + 32 * k)));
        }
        for (int k = 0; k < 3; ++k) {
          uint8_t* line = planes ? o + (k * pixels + p) * size : o + (3 * p + 32 * k) * size;
          for (int64_t i = 0; i < 32 * size; i += 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(line + i), v[k]);
        }
      }
    }
    _mm_sfence();
  });
}

// Rows [N, bytes]: both rows read, one written, to the caches, where the rows of a batch stay. `repeats` times, so that
// starting threads does not count.
extern "C" void row_limit(const uint8_t* rows, const int64_t* index, const int64_t* partner, uint8_t* out,
                          int64_t batch, int64_t bytes, int64_t repeats, int threads) {
  in_threads(batch, threads, [=](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < repeats * (end - begin); ++i) {
      const int64_t n = begin + i % (end - begin);
      const uint8_t *a = rows + index[n] * bytes, *b = rows + partner[n] * bytes;
      for (int64_t i = 0; i + 32 <= bytes; i += 32) {
        const __m256i v = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)),
                                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + n * bytes + i), v);
      }
    }
  });
}

// Rows of `row` bytes at `offsets` of a file, past the page cache and in that order, into `slots` places of huge pages
// that `memory` consists of, each of `slot` bytes. Returns the bytes that came, of whole pages.
extern "C" int64_t disk_limit(int direct, const int64_t* offsets, int64_t count, int64_t row, uint8_t* memory,
                              int64_t slot, int64_t slots, int threads) {
  std::atomic<int64_t> next{0}, bytes{0};
  in_threads(threads, threads, [&](int64_t, int64_t) {
    for (int64_t k; (k = next.fetch_add(1)) < count;) {
      const int64_t begin = offsets[k] / 4096 * 4096, end = (offsets[k] + row + 4095) / 4096 * 4096;
      bytes += pread(direct, memory + k % slots * slot, static_cast<size_t>(end - begin), begin);
    }
  });
  return bytes;
}

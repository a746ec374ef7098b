#include "read_rows.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <vector>

#include "threads.h"

namespace spurmix::host {
namespace {

constexpr int64_t kMostBytes = int64_t{8} << 20;  // per read

// Number of consecutive rows from rows[k] on that one read returns.
int64_t run_length(const RowFile& file, const int64_t* rows, int64_t k, int64_t count) {
  const int64_t most = std::max<int64_t>(1, kMostBytes / std::max<int64_t>(1, file.row_bytes));
  int64_t n = 1;
  while (n < most && k + n < count && rows[k + n] == rows[k] + n) ++n;
  return n;
}

// Reads bytes [at, at + size) to `to`. Returns 0, an errno, or -1 if the file ends before.
int read_all(int fd, uint8_t* to, int64_t size, int64_t at) {
  while (size > 0) {
    const ssize_t got = pread(fd, to, static_cast<size_t>(size), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : -1;
    size -= got;
    at += got;
    to += got;
  }
  return 0;
}

// Whether the page cache holds bytes [at, at + size). It calls cachestat, which Linux has since 6.5 and allows for
// files that the user may write to. A read with RWF_NOWAIT would start reading ahead.
bool is_cached(int fd, int64_t size, int64_t at) {
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
  constexpr long kCachestat = 451;
  const uint64_t range[2] = {static_cast<uint64_t>(at), static_cast<uint64_t>(size)};
  uint64_t counts[5] = {};  // pages cached, dirty, written back, evicted, recently evicted
  const int64_t pages = (at + size - 1) / kPage - at / kPage + 1;
  return syscall(kCachestat, fd, range, counts, 0) == 0 && counts[0] >= static_cast<uint64_t>(pages);
#else
  return (void)fd, (void)size, (void)at, false;
#endif
}

// Reads the whole pages of bytes [at, at + size) past the page cache. Returns how many of these bytes it read.
int64_t read_direct(int fd, uint8_t* to, int64_t size, int64_t at) {
  const int64_t skip = at % kPage, whole = (skip + size + kPage - 1) / kPage * kPage;
  const ssize_t got = pread(fd, to - skip, static_cast<size_t>(whole), static_cast<off_t>(at - skip));
  return std::clamp<int64_t>(static_cast<int64_t>(got) - skip, 0, size);
}

}  // namespace

int64_t place_rows(const RowFile& file, const int64_t* rows, int64_t count, int64_t* places) {
  int64_t end = 0;
  for (int64_t k = 0; k < count;) {
    const int64_t n = run_length(file, rows, k, count);
    if (file.direct >= 0) end = (end + kPage - 1) / kPage * kPage + (file.begin + rows[k] * file.row_bytes) % kPage;
    for (int64_t i = 0; i < n; ++i, end += file.row_bytes) places[k + i] = end;
    k += n;
  }
  return file.direct >= 0 ? (end + kPage - 1) / kPage * kPage : end;
}

int64_t read_rows(const RowFile& file, const int64_t* rows, const int64_t* places, int64_t count, int threads,
                  uint8_t* out, int* error) {
  std::vector<int64_t> starts;  // first position in `rows` of each run of consecutive rows
  for (int64_t k = 0; k < count; k += run_length(file, rows, k, count)) starts.push_back(k);
  starts.push_back(count);
  std::atomic<int64_t> failed{-1};
  std::mutex mutex;
  *error = 0;

  parallel_for(static_cast<int64_t>(starts.size()) - 1, threads, [&](int64_t r) {
    if (failed >= 0) return;
    const int64_t k = starts[r], size = (starts[r + 1] - k) * file.row_bytes;
    const int64_t at = file.begin + rows[k] * file.row_bytes;
    uint8_t* to = out + places[k];
    int64_t done = 0;
    if (file.direct >= 0 && !is_cached(file.fd, size, at)) {
      done = read_direct(file.direct, to, size, at);  // the rest is read through the page cache
    }
    const int code = read_all(file.fd, to + done, size - done, at + done);
    if (code == 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    if (failed < 0) {
      *error = std::max(code, 0);
      failed = k;
    }
  });
  return failed;
}

}  // namespace spurmix::host

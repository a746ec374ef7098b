#include "read_rows.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace spurmix::host {
namespace {

constexpr int64_t kMostBytes = int64_t{8} << 20;  // of one read

// How many rows from rows[k] on follow each other, up to `most`.
int64_t run_length(const int64_t* rows, int64_t k, int64_t count, int64_t most) {
  int64_t n = 1;
  while (n < most && k + n < count && rows[k + n] == rows[k] + n) ++n;
  return n;
}

}  // namespace

int64_t read_rows(int fd, int64_t begin, int64_t row_bytes, const int64_t* rows, int64_t count, int threads,
                  uint8_t* out, int* error) {
  std::vector<int64_t> starts;  // of the runs, in `rows`
  const int64_t most = std::max<int64_t>(1, kMostBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t k = 0; k < count; k += run_length(rows, k, count, most)) starts.push_back(k);
  starts.push_back(count);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  int64_t failed = -1;
  *error = 0;

  const auto work = [&] {
    for (size_t r; (r = next.fetch_add(1)) + 1 < starts.size();) {
      const int64_t k = starts[r];
      int64_t left = (starts[r + 1] - k) * row_bytes, at = begin + rows[k] * row_bytes;
      uint8_t* to = out + k * row_bytes;
      while (left > 0) {
        const ssize_t got = pread(fd, to, static_cast<size_t>(left), static_cast<off_t>(at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
          const std::lock_guard<std::mutex> lock(mutex);
          if (failed < 0) {
            failed = k;
            *error = got < 0 ? errno : 0;
          }
          return;
        }
        left -= got;
        at += got;
        to += got;
      }
    }
  };

  std::vector<std::thread> team;
  const int64_t wanted = std::min<int64_t>(threads, static_cast<int64_t>(starts.size()) - 1);
  try {
    for (int64_t t = 1; t < wanted; ++t) team.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads are to be had; those that are there do the work.
  }
  work();
  for (std::thread& thread : team) thread.join();
  return failed;
}

}  // namespace spurmix::host

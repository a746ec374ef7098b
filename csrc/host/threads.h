// Tasks shared by threads. Free of Python and torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace spurmix::host {

// Calls task(k) once for every k in [0, count), in at most `threads` threads. The calling thread is one of them, so the
// tasks run even if the system starts no other thread. After an exception no further task starts. Of several
// exceptions, the one of the lowest k is rethrown.
template <class Task>
void parallel_for(int64_t count, int64_t threads, const Task& task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::exception_ptr error;
  int64_t error_task = count;

  const auto work = [&] {
    for (int64_t k; !failed && (k = next.fetch_add(1)) < count;) {
      try {
        task(k);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (k < error_task) {
          error = std::current_exception();
          error_task = k;
        }
        failed = true;
      }
    }
  };

  std::vector<std::thread> team;
  const int64_t size = std::min(threads, count);
  try {
    team.reserve(static_cast<size_t>(std::max<int64_t>(size, 0)));
    while (static_cast<int64_t>(team.size()) + 1 < size) team.emplace_back(work);
  } catch (const std::exception&) {
    // No thread or no memory for it is available: the threads that started do the work.
  }
  work();
  for (std::thread& thread : team) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace spurmix::host

// The accesses of a launch, byte by byte, and the entry points that -fsanitize=thread calls.
#include "races.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <unordered_map>

namespace spurmix::cuda::races {
namespace {

struct Access {
  const void* where = nullptr;
  int32_t block = 0, block_barriers = 0, warp_barriers = 0;
  int16_t thread = 0;
  Kind kind = Kind::none;

  bool same_thread(const Access& other) const { return block == other.block && thread == other.thread; }
  bool before(const Access& now) const {
    if (block != now.block) return false;
    return thread == now.thread || block_barriers < now.block_barriers ||
           (thread / 32 == now.thread / 32 && warp_barriers < now.warp_barriers);
  }
};

// The last write, and the last reads of different threads.
struct Byte {
  Access write;
  std::array<Access, 3> reads;
};

class Memory {
 public:
  Byte& operator[](uintptr_t at) {
    if (page_ == nullptr || at / kPage != number_) {
      number_ = at / kPage;
      std::unique_ptr<Page>& found = pages_[number_];
      if (found == nullptr) found = std::make_unique<Page>();
      page_ = found.get();
    }
    return (*page_)[at % kPage];
  }
  void clear() {
    pages_.clear();
    page_ = nullptr;
  }

 private:
  static constexpr uintptr_t kPage = 1024;
  using Page = std::array<Byte, kPage>;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  Page* page_ = nullptr;
  uintptr_t number_ = 0;
};

struct Range {
  uintptr_t begin = 0, end = 0;
  bool has(uintptr_t at) const { return at >= begin && at < end; }
};

Range range_of(const void* at, size_t size) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
  return {begin, begin + size};
}

Memory global_memory, shared_memory;
Range fixed_shared, dynamic_shared, stack;
Access running;  // kind and where: not used
bool watching = false;
std::string found;

std::string said(const Access& access) {
  static const char* const verbs[] = {"", "reads", "reads by __ldg", "writes", "changes atomically"};
  Dl_info module = {};
  dladdr(access.where, &module);
  char text[160];
  std::snprintf(text, sizeof text, "thread %d of block %d %s (at %#zx in the module)", access.thread, access.block,
                verbs[static_cast<int>(access.kind)],
                reinterpret_cast<size_t>(access.where) - reinterpret_cast<size_t>(module.dli_fbase));
  return text;
}

// The thread-local memory of the module that `mine` belongs to: what kernels declare as shared.
int find_shared(dl_phdr_info* module, size_t, void* mine) {
  for (int k = 0; module->dlpi_tls_data != nullptr && k < module->dlpi_phnum; ++k) {
    if (module->dlpi_phdr[k].p_type != PT_TLS) continue;
    const Range range = range_of(module->dlpi_tls_data, module->dlpi_phdr[k].p_memsz);
    if (range.has(reinterpret_cast<uintptr_t>(mine))) fixed_shared = range;
  }
  return 0;
}

void report(bool shared, const Access& now, const Access* other, const char* why) {
  if (!found.empty()) return;
  found = std::string(shared ? "shared" : "global") + " memory: " + said(now);
  if (other != nullptr) found += ", and " + said(*other);
  found += std::string(": ") + why;
}

void look(Byte* byte, bool shared, const Access& now) {
  const bool writes = now.kind == Kind::write || now.kind == Kind::atomic;
  const Access& write = byte->write;
  if (write.kind == Kind::none) {
    if (shared && !writes) report(shared, now, nullptr, "nothing was written there");
  } else if (now.kind == Kind::constant) {
    report(shared, now, &write, "__ldg may see an old value");
  } else if (!write.before(now) && !(write.kind == Kind::atomic && now.kind == Kind::atomic)) {
    report(shared, now, &write, "a race");
  }
  if (writes) {
    for (const Access& read : byte->reads) {
      if (read.kind == Kind::constant) report(shared, now, &read, "__ldg may see an old value");
      if (read.kind != Kind::none && !read.before(now)) report(shared, now, &read, "a race");
    }
    byte->write = now;
    return;
  }
  // In the place of this thread's own read, a free one, one that is over, or any.
  auto& reads = byte->reads;
  auto place = std::find_if(reads.begin(), reads.end(), [&](const Access& r) { return r.same_thread(now); });
  const auto empty = [](const Access& r) { return r.kind == Kind::none; };
  const auto over = [&](const Access& r) { return r.before(now); };
  if (place == reads.end()) place = std::find_if(reads.begin(), reads.end(), empty);
  if (place == reads.end()) place = std::find_if(reads.begin(), reads.end(), over);
  if (place == reads.end()) place = reads.begin() + 1 + now.thread % (reads.size() - 1);
  *place = now;
}

}  // namespace

void saw(const void* at, size_t size, Kind kind, const void* where) {
  if (!watching) return;
  watching = false;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
  if (!stack.has(begin)) {
    Access now = running;
    now.kind = kind;
    now.where = where;
    const bool shared = fixed_shared.has(begin) || dynamic_shared.has(begin);
    Memory& memory = shared ? shared_memory : global_memory;
    for (size_t k = 0; k < size; ++k) look(&memory[begin + k], shared, now);
  }
  watching = true;
}

void begin_launch() {
  found.clear();
  static thread_local char touched;
  touched = 1;  // now the memory is there
  fixed_shared = {};
  dl_iterate_phdr(find_shared, &touched);
}

void begin_block(int64_t block, const void* dynamic, size_t size) {
  shared_memory.clear();
  dynamic_shared = range_of(dynamic, size);
  running.block = static_cast<int32_t>(block);
}

void go_on(int thread, int64_t block_barriers, int64_t warp_barriers, const void* own_stack, size_t size) {
  running.thread = static_cast<int16_t>(thread);
  running.block_barriers = static_cast<int32_t>(block_barriers);
  running.warp_barriers = static_cast<int32_t>(warp_barriers);
  stack = range_of(own_stack, size);
  watching = true;
}

void pause() { watching = false; }

void end_launch() { global_memory.clear(); }

const std::string& message() { return found; }

}  // namespace spurmix::cuda::races

// What -fsanitize=thread calls. Volatile and C++ atomic accesses do not occur in kernels; the host's pass through.
using spurmix::cuda::races::Kind;
using spurmix::cuda::races::saw;

#define HERE __builtin_return_address(0)
#define ACCESSES(size)                                                                       \
  extern "C" void __tsan_read##size(void* at) { saw(at, size, Kind::read, HERE); }           \
  extern "C" void __tsan_write##size(void* at) { saw(at, size, Kind::write, HERE); }         \
  extern "C" void __tsan_unaligned_read##size(void* at) { saw(at, size, Kind::read, HERE); } \
  extern "C" void __tsan_unaligned_write##size(void* at) { saw(at, size, Kind::write, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
#undef ACCESSES

extern "C" void __tsan_read_range(void* at, size_t size) { saw(at, size, Kind::read, HERE); }
extern "C" void __tsan_write_range(void* at, size_t size) { saw(at, size, Kind::write, HERE); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" uint8_t __tsan_atomic8_load(const volatile uint8_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
extern "C" uint64_t __tsan_atomic64_load(const volatile uint64_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
extern "C" void __tsan_atomic64_store(volatile uint64_t* at, uint64_t value, int) {
  __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}

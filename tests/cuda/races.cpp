// Records the accesses of a launch to each byte, and defines the functions that -fsanitize=thread calls.
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
  const void* instruction = nullptr;
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

// The last write, and the last reads of up to three threads.
struct Byte {
  Access write;
  std::array<Access, 3> reads;
};

class Memory {
 public:
  Byte& operator[](uintptr_t at) {
    if (page_ == nullptr || at / kPage != number_) {
      number_ = at / kPage;
      std::unique_ptr<Page>& page = pages_[number_];
      if (page == nullptr) page = std::make_unique<Page>();
      page_ = page.get();
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
Access current;  // without kind and instruction
bool recording = false;
std::string first_error;

std::string describe(const Access& access) {
  static const char* const verbs[] = {"", "reads", "reads by __ldg", "writes", "changes atomically"};
  Dl_info module = {};
  dladdr(access.instruction, &module);
  char text[160];
  std::snprintf(text, sizeof text, "thread %d of block %d %s (at %#zx in the module)", access.thread, access.block,
                verbs[static_cast<int>(access.kind)],
                reinterpret_cast<size_t>(access.instruction) - reinterpret_cast<size_t>(module.dli_fbase));
  return text;
}

// Finds the TLS segment of the module that contains `address`: the memory that kernels declare as __shared__.
int find_shared(dl_phdr_info* module, size_t, void* address) {
  for (int k = 0; module->dlpi_tls_data != nullptr && k < module->dlpi_phnum; ++k) {
    if (module->dlpi_phdr[k].p_type != PT_TLS) continue;
    const Range range = range_of(module->dlpi_tls_data, module->dlpi_phdr[k].p_memsz);
    if (range.has(reinterpret_cast<uintptr_t>(address))) fixed_shared = range;
  }
  return 0;
}

void report(bool shared, const Access& now, const Access* other, const char* reason) {
  if (!first_error.empty()) return;
  first_error = std::string(shared ? "shared" : "global") + " memory: " + describe(now);
  if (other != nullptr) first_error += ", and " + describe(*other);
  first_error += std::string(": ") + reason;
}

// Checks an access against the earlier ones, and records it.
void check(Byte* byte, bool shared, const Access& now) {
  const bool writes = now.kind == Kind::write || now.kind == Kind::atomic;
  const Access& write = byte->write;
  if (write.kind == Kind::none) {
    if (shared && !writes) report(shared, now, nullptr, "reads uninitialized shared memory");
  } else if (now.kind == Kind::constant) {
    report(shared, now, &write, "__ldg of memory that the launch writes");
  } else if (!write.before(now) && !(write.kind == Kind::atomic && now.kind == Kind::atomic)) {
    report(shared, now, &write, "data race");
  }
  if (writes) {
    for (const Access& read : byte->reads) {
      if (read.kind == Kind::constant) report(shared, now, &read, "__ldg of memory that the launch writes");
      if (read.kind != Kind::none && !read.before(now)) report(shared, now, &read, "data race");
    }
    byte->write = now;
    return;
  }
  // Replaces the read of the same thread, or an empty entry, or a read that is ordered before this one, or any entry.
  auto& reads = byte->reads;
  auto entry = std::find_if(reads.begin(), reads.end(), [&](const Access& r) { return r.same_thread(now); });
  const auto empty = [](const Access& r) { return r.kind == Kind::none; };
  const auto ordered = [&](const Access& r) { return r.before(now); };
  if (entry == reads.end()) entry = std::find_if(reads.begin(), reads.end(), empty);
  if (entry == reads.end()) entry = std::find_if(reads.begin(), reads.end(), ordered);
  if (entry == reads.end()) entry = reads.begin() + 1 + now.thread % (reads.size() - 1);
  *entry = now;
}

}  // namespace

void record(const void* address, size_t size, Kind kind, const void* instruction) {
  if (!recording) return;
  recording = false;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  if (!stack.has(begin)) {
    Access now = current;
    now.kind = kind;
    now.instruction = instruction;
    const bool shared = fixed_shared.has(begin) || dynamic_shared.has(begin);
    Memory& memory = shared ? shared_memory : global_memory;
    for (size_t k = 0; k < size; ++k) check(&memory[begin + k], shared, now);
  }
  recording = true;
}

void begin_launch() {
  first_error.clear();
  static thread_local char variable;
  variable = 1;  // allocates the TLS segment
  fixed_shared = {};
  dl_iterate_phdr(find_shared, &variable);
}

void begin_block(int64_t block, const void* dynamic, size_t size) {
  shared_memory.clear();
  dynamic_shared = range_of(dynamic, size);
  current.block = static_cast<int32_t>(block);
}

void resume(int thread, int64_t block_barriers, int64_t warp_barriers, const void* thread_stack, size_t size) {
  current.thread = static_cast<int16_t>(thread);
  current.block_barriers = static_cast<int32_t>(block_barriers);
  current.warp_barriers = static_cast<int32_t>(warp_barriers);
  stack = range_of(thread_stack, size);
  recording = true;
}

void pause() { recording = false; }

void end_launch() { global_memory.clear(); }

const std::string& message() { return first_error; }

}  // namespace spurmix::cuda::races

// Functions that -fsanitize=thread calls. Kernels have no volatile or C++ atomic accesses; those of the host are not
// checked.
using spurmix::cuda::races::Kind;
using spurmix::cuda::races::record;

#define CALLER __builtin_return_address(0)
#define ACCESSES(size)                                                                            \
  extern "C" void __tsan_read##size(void* at) { record(at, size, Kind::read, CALLER); }           \
  extern "C" void __tsan_write##size(void* at) { record(at, size, Kind::write, CALLER); }         \
  extern "C" void __tsan_unaligned_read##size(void* at) { record(at, size, Kind::read, CALLER); } \
  extern "C" void __tsan_unaligned_write##size(void* at) { record(at, size, Kind::write, CALLER); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
#undef ACCESSES

extern "C" void __tsan_read_range(void* at, size_t size) { record(at, size, Kind::read, CALLER); }
extern "C" void __tsan_write_range(void* at, size_t size) { record(at, size, Kind::write, CALLER); }
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

// The threads behind emulation.h.
#include "emulation.h"

#include <ucontext.h>

#include <vector>

namespace spurmix::cuda::emulation {

Position position;

namespace {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  int64_t barriers, shuffles, warp_barriers;  // that it has come to; the last are shuffles as well
};

struct Warp {
  int64_t arrived;        // lanes, over all shuffles so far
  uint64_t value[2][32];  // of this shuffle and the one before
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
std::function<void()> body;
std::vector<unsigned char> shared_bytes;
int64_t at_barrier;  // threads, over all barriers so far
int count, current;

void yield() {
  races::pause();
  swapcontext(&fibers[current].context, &scheduler);
}

void enter() {
  body();
  fibers[current].done = true;
  yield();
}

// Threads at barriers and lanes at shuffles so far.
int64_t arrivals() {
  int64_t sum = at_barrier;
  for (const Warp& warp : warps) sum += warp.arrived;
  return sum;
}

void run_from_here(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  position.thread.x = static_cast<unsigned>(thread);
  races::go_on(thread, fiber.barriers, fiber.warp_barriers, fiber.stack.data(), fiber.stack.size());
  swapcontext(&scheduler, &fiber.context);
}

// Runs one block; whether all its threads ended.
bool run_block(int threads) {
  count = threads;
  at_barrier = 0;
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  warps.assign((threads + 31) / 32, {});
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.stack.resize(64 << 10);
    fiber.done = false;
    fiber.barriers = fiber.shuffles = fiber.warp_barriers = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  int left = threads;
  while (left > 0) {
    const int64_t before = arrivals();
    const int had = left;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].done) continue;
      run_from_here(i);
      left += !fibers[i].done;
    }
    if (left == had && arrivals() == before) return false;
  }
  return true;
}

}  // namespace

void barrier() {
  Fiber& fiber = fibers[current];
  ++at_barrier;
  ++fiber.barriers;
  do yield();
  while (at_barrier < fiber.barriers * count);
}

uint64_t exchange(uint64_t value, int mask) {
  const int lane = current % 32;
  Fiber& fiber = fibers[current];
  Warp& warp = warps[current / 32];
  uint64_t (&slots)[32] = warp.value[fiber.shuffles % 2];
  slots[lane] = value;
  ++warp.arrived;
  ++fiber.shuffles;
  do yield();
  while (warp.arrived < fiber.shuffles * 32);
  return slots[lane ^ mask];
}

void warp_barrier() {
  ++fibers[current].warp_barriers;
  exchange(0, 0);
}

unsigned char* shared_memory() { return shared_bytes.data(); }

bool run(int64_t blocks, int threads, size_t shared, std::function<void()> kernel) {
  shared_bytes.assign(shared + 16, 0xff);
  body = std::move(kernel);
  position.grid.x = static_cast<unsigned>(blocks);
  position.threads.x = static_cast<unsigned>(threads);
  races::begin_launch();
  bool ran = true;
  for (int64_t b = 0; b < blocks && ran; ++b) {
    position.block.x = static_cast<unsigned>(b);
    races::begin_block(b, shared_bytes.data(), shared_bytes.size());
    ran = run_block(threads) && races::message().empty();
  }
  races::end_launch();
  return ran;
}

}  // namespace spurmix::cuda::emulation

const char* cudaGetErrorString(cudaError_t) {
  const std::string& found = spurmix::cuda::races::message();
  return found.empty() ? "threads of the emulated kernel wait for others that have ended or wait elsewhere"
                       : found.c_str();
}

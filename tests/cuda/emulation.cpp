// Scheduler of the emulated threads.
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
  int64_t barriers, shuffles, warp_barriers;  // reached so far; a warp barrier counts as a shuffle too
};

struct Warp {
  int64_t arrived;        // number of arrivals of lanes at shuffles so far
  uint64_t value[2][32];  // values of the current shuffle and of the previous one
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
std::function<void()> body;
std::vector<unsigned char> shared_bytes;
int64_t arrived_at_barriers;  // number of arrivals of threads at barriers so far
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

// Number of arrivals at barriers and shuffles so far.
int64_t arrivals() {
  int64_t sum = arrived_at_barriers;
  for (const Warp& warp : warps) sum += warp.arrived;
  return sum;
}

// Runs a thread until its next barrier, shuffle or end.
void resume(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  position.thread.x = static_cast<unsigned>(thread);
  races::resume(thread, fiber.barriers, fiber.warp_barriers, fiber.stack.data(), fiber.stack.size());
  swapcontext(&scheduler, &fiber.context);
}

// Runs one block. Returns false on a deadlock.
bool run_block(int threads) {
  count = threads;
  arrived_at_barriers = 0;
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
    const int left_before = left;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].done) continue;
      resume(i);
      left += !fibers[i].done;
    }
    if (left == left_before && arrivals() == before) return false;
  }
  return true;
}

}  // namespace

void barrier() {
  Fiber& fiber = fibers[current];
  ++arrived_at_barriers;
  ++fiber.barriers;
  do yield();
  while (arrived_at_barriers < fiber.barriers * count);
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
  return found.empty() ? "deadlock: threads wait at a barrier or shuffle that other threads do not reach"
                       : found.c_str();
}

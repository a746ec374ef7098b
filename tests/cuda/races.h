// Finds accesses of emulated threads that nothing orders, in shared and in global memory. Kernels are compiled with
// -fsanitize=thread, but linked to races.cpp instead of the sanitizer's library, which knows of no barriers of blocks.
//
// Two accesses to a byte race when they are of different threads, one of them writes, not both are atomic, and no
// __syncthreads of their block or __syncwarp of their warp lies between; those of different blocks always do. Further,
// what __ldg reads must not be written in the same launch, and shared memory must be written by a block that reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace spurmix::cuda::races {

enum class Kind : uint8_t { none, read, constant, write, atomic };

// An access of the thread that runs; `where`: the instruction behind it.
void saw(const void* at, size_t size, Kind kind, const void* where);

void begin_launch();
void begin_block(int64_t block, const void* dynamic_shared, size_t size);
// This thread of the block runs until `pause`; its own stack is its own affair.
void go_on(int thread, int64_t block_barriers, int64_t warp_barriers, const void* stack, size_t size);
void pause();
void end_launch();

// The first finding of the last launch, or nothing.
const std::string& message();

}  // namespace spurmix::cuda::races

// Finds data races of emulated threads in shared and global memory. Kernels are compiled with -fsanitize=thread, but
// linked with races.cpp instead of the library of ThreadSanitizer, which does not support barriers of blocks.
//
// Two accesses to a byte are a race if different threads make them, at least one is a write, they are not both atomic,
// and no __syncthreads of their block and no __syncwarp of their warp is between them. Accesses of different blocks
// have no order. Further errors: __ldg of memory that the launch writes, and reads of shared memory that the block has
// not written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace spurmix::cuda::races {

enum class Kind : uint8_t { none, read, constant, write, atomic };

// Records an access of the current thread. `instruction` is the return address.
void record(const void* address, size_t size, Kind kind, const void* instruction);

void begin_launch();
void begin_block(int64_t block, const void* dynamic_shared, size_t size);
// Sets the current thread, until `pause`. Accesses to its stack are not recorded.
void resume(int thread, int64_t block_barriers, int64_t warp_barriers, const void* stack, size_t size);
void pause();
void end_launch();

// The first error of the last launch, or an empty string.
const std::string& message();

}  // namespace spurmix::cuda::races

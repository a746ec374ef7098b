// Device code of the draw: a copy of the tables in shared memory, and checks of tables and sample numbers.
#pragma once

#include "device.cuh"

namespace spurmix::cuda {

constexpr int kCachedWords = 512;  // words of the tables that a block copies to shared memory

// Copies the first words of the tables to `cached`. All threads of a block must call this; a barrier must follow.
__device__ __forceinline__ void cache_tables(const Sequence& sequence, int64_t* cached) {
  for (int k = static_cast<int>(threadIdx.x); k < kCachedWords && k < sequence.length;
       k += static_cast<int>(blockDim.x)) {
    cached[k] = __ldg(sequence.tables + k);
  }
}

// Sets the view of the tables and members. Returns false if they are damaged.
__device__ __forceinline__ bool open_tables(const Sequence& sequence, const int64_t* cached, Tables* view) {
  const int64_t count = sequence.length < kCachedWords ? sequence.length : kCachedWords;
  if (view_tables(sequence.tables, sequence.length, view, cached, count) != nullptr) return false;
  if (!valid_member_count(*view, sequence.member_count)) return false;
  if (sequence.member_size == 4) view->members32 = static_cast<const int32_t*>(sequence.members);
  if (sequence.member_size == 8) view->members64 = static_cast<const int64_t*>(sequence.members);
  return true;
}

// Sets n to the number of sample i of a batch. Returns false if the number is not in [0, 2^63).
__device__ __forceinline__ bool sample_number(const Sequence& sequence, int64_t i, uint64_t* n) {
  const int64_t offset = sequence.counter != nullptr ? *sequence.counter : 0;
  *n = sequence.start + static_cast<uint64_t>(offset) + static_cast<uint64_t>(i);
  return offset >= 0 && *n < uint64_t{1} << 63;
}

}  // namespace spurmix::cuda

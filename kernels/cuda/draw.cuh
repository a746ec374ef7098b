// The draw on a device: tables brought near, and samples of csrc/draw.h with what is damaged refused.
#pragma once

#include "device.cuh"

namespace spurmix::cuda {

constexpr int kNearby = 512;  // words of the tables that a block keeps in shared memory

// Copies the first words of the tables into `nearby`, by all threads of a block; a barrier must follow.
__device__ __forceinline__ void fetch_tables(const Sequence& sequence, int64_t* nearby) {
  for (int k = static_cast<int>(threadIdx.x); k < kNearby && k < sequence.length; k += static_cast<int>(blockDim.x)) {
    nearby[k] = __ldg(sequence.tables + k);
  }
}

// The view of the tables, with the members; false where they are damaged.
__device__ __forceinline__ bool open_tables(const Sequence& sequence, const int64_t* nearby, Tables* view) {
  const int64_t copied = sequence.length < kNearby ? sequence.length : kNearby;
  if (view_tables(sequence.tables, sequence.length, view, nearby, copied) != nullptr) return false;
  if (sequence.member_count != 0 && sequence.member_count != view->num_examples) return false;
  if (sequence.member_size == 4) view->members32 = static_cast<const int32_t*>(sequence.members);
  if (sequence.member_size == 8) view->members64 = static_cast<const int64_t*>(sequence.members);
  return true;
}

// The number of sample `at`; false where it lies outside [0, 2^63).
__device__ __forceinline__ bool sample_number(const Sequence& sequence, int64_t at, uint64_t* n) {
  const int64_t offset = sequence.counter != nullptr ? *sequence.counter : 0;
  *n = sequence.start + static_cast<uint64_t>(offset) + static_cast<uint64_t>(at);
  return offset >= 0 && *n < uint64_t{1} << 63;
}

}  // namespace spurmix::cuda

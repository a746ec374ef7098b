// Iteration over rows of logits, shared by cross_entropy.cu and group_counts.cu: a warp per row, or a block per long
// row.
#pragma once

#include "device.cuh"

namespace spurmix::cuda {

constexpr int64_t kLongRow = 4096;  // rows of at least this many classes are processed by a block

template <class T>
__device__ __forceinline__ T infinity() {
  return static_cast<T>(bits_float(0x7f800000u));
}

// Sixteen bytes of a row.
template <Format kFormat>
struct alignas(16) LogitVector {
  static constexpr int kSize = 16 / sizeof(TypeOf<kFormat>);
  TypeOf<kFormat> v[kSize];
};

template <Format kFormat>
__device__ __forceinline__ bool is_aligned(const void* base, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_stride % LogitVector<kFormat>::kSize == 0;
}

// Calls visit(values, count, first column) for each vector of a row that lane `lane` of kLanes processes, in ascending
// order. Rows that are not aligned, and the last columns, are visited one value at a time.
template <Format kFormat, int kLanes, class Visit>
__device__ __forceinline__ void for_each_vector(const TypeOf<kFormat>* row, int64_t classes, bool aligned, int lane,
                                                Visit visit) {
  using Wide = typename Element<kFormat>::Wide;
  constexpr int kSize = LogitVector<kFormat>::kSize;
  int64_t column = 0;
  if (aligned) {
    const int64_t vectors = classes / kSize;
#pragma unroll 4
    for (int64_t k = lane; k < vectors; k += kLanes) {
      const LogitVector<kFormat> vector = *reinterpret_cast<const LogitVector<kFormat>*>(row + k * kSize);
      Wide x[kSize];
#pragma unroll
      for (int j = 0; j < kSize; ++j) x[j] = Element<kFormat>::load(vector.v[j]);
      visit(x, kSize, k * kSize);
    }
    column = vectors * kSize;
  }
  for (int64_t k = column + lane; k < classes; k += kLanes) {
    const Wide x[1] = {Element<kFormat>::load(row[k])};
    visit(x, 1, k);
  }
}

}  // namespace spurmix::cuda

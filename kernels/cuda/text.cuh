// What the kernels on token embeddings share: runs of neighbouring columns, and the two weights of a token.
#pragma once

#include "device.cuh"

namespace spurmix::cuda {

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Run {
  T v[kWidth];
};

template <Format kFormat, class Wide, int kWidth>
__device__ __forceinline__ void load_run(const void* base, int64_t at, Wide (&x)[kWidth]) {
  using Type = TypeOf<kFormat>;
  const auto run = *reinterpret_cast<const Run<Type, kWidth>*>(static_cast<const Type*>(base) + at);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) x[k] = static_cast<Wide>(Element<kFormat>::load(run.v[k]));
}

template <class Wide, int kWidth>
__device__ __forceinline__ void load_run(Format format, const void* base, int64_t at, Wide (&x)[kWidth]) {
  switch (format) {
    case Format::f32: return load_run<Format::f32>(base, at, x);
    case Format::f16: return load_run<Format::f16>(base, at, x);
    case Format::bf16: return load_run<Format::bf16>(base, at, x);
    default: return load_run<Format::f64>(base, at, x);
  }
}

template <Format kFormat, class Wide, int kWidth>
__device__ __forceinline__ void store_run(void* base, int64_t at, const Wide (&x)[kWidth]) {
  using Type = TypeOf<kFormat>;
  Run<Type, kWidth> run;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) run.v[k] = Element<kFormat>::store(x[k]);
  *reinterpret_cast<Run<Type, kWidth>*>(static_cast<Type*>(base) + at) = run;
}

template <class Wide, int kWidth>
__device__ __forceinline__ void store_run(Format format, void* base, int64_t at, const Wide (&x)[kWidth]) {
  switch (format) {
    case Format::f32: return store_run<Format::f32>(base, at, x);
    case Format::f16: return store_run<Format::f16>(base, at, x);
    case Format::bf16: return store_run<Format::bf16>(base, at, x);
    default: return store_run<Format::f64>(base, at, x);
  }
}

// The format in which sums of type Wide are kept.
template <class Wide>
constexpr Format kFormatOf = sizeof(Wide) == 8 ? Format::f64 : Format::f32;

template <class Wide>
__device__ __forceinline__ Wide own_weight(const Lookups& m, int64_t token) {
  return m.mask == nullptr || m.mask[token] ? static_cast<Wide>(m.lam[token / m.length]) : Wide{0};
}

template <class Wide>
__device__ __forceinline__ Wide partner_weight(const Lookups& m, int64_t token) {
  const bool there = m.partner_mask == nullptr || m.partner_mask[token];
  return there ? 1 - static_cast<Wide>(m.lam[token / m.length]) : Wide{0};
}

__device__ __forceinline__ bool inside(int64_t id, int64_t count) { return id >= 0 && id < count; }

// Whether `columns` and a table's stride are whole runs, and every base lies on 16 bytes (null does).
template <class... Bases>
bool runs_are_whole(int width, int64_t columns, int64_t row_stride, const Bases*... bases) {
  return columns % width == 0 && row_stride % width == 0 && ((reinterpret_cast<uintptr_t>(bases) % 16 == 0) && ...);
}

}  // namespace spurmix::cuda

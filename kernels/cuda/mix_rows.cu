// mix_rows and mix_labels: grid-stride loops; a thread processes a vector of adjacent columns.
#include "device.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__device__ __forceinline__ T not_a_number() {
  return static_cast<T>(nan_value());
}

// kWidth: columns per thread, 16 bytes of the input or one.
template <Format kIn, Format kOut, int kWidth>
__global__ void __launch_bounds__(kThreads) mix_rows_kernel(MixRows m) {
  using In = TypeOf<kIn>;
  using Out = TypeOf<kOut>;
  using Wide = typename Element<kIn>::Wide;
  struct alignas(kWidth == 1 ? sizeof(In) : 16) Vector {
    In v[kWidth];
  };
  const int64_t vectors = m.columns / kWidth, total = m.batch * vectors;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t b = i / vectors, column = (i - b * vectors) * kWidth;
    const int64_t index = m.index[b], partner = m.partner[b];
    const float weight = m.lam[b];
    const Wide lam = weight;
    const bool in_range = index >= 0 && index < m.total && partner >= 0 && partner < m.total;
    const bool valid = in_range && is_weight(weight);
    if (!valid && column == 0) set_error(m.error_flag, sample_error(in_range));
    Vector p = {}, q = {};
    if (valid) {
      const In* rows = static_cast<const In*>(m.rows);
      p = *reinterpret_cast<const Vector*>(rows + index * m.row_stride + column);
      q = *reinterpret_cast<const Vector*>(rows + partner * m.row_stride + column);
    }
    struct alignas(kWidth == 1 || sizeof(Out) * kWidth < 16 ? sizeof(Out) : 16) Result {
      Out v[kWidth];
    } result;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const Wide mixed = lam * Element<kIn>::load(p.v[k]) + (1 - lam) * Element<kIn>::load(q.v[k]);
      result.v[k] = Element<kOut>::store(valid ? mixed : not_a_number<Wide>());
    }
    *reinterpret_cast<Result*>(static_cast<Out*>(m.out) + b * m.columns + column) = result;
  }
}

template <Format kIn, Format kOut>
int run_rows(const MixRows& m, void* stream) {
  constexpr int kWidth = 16 / sizeof(TypeOf<kIn>);
  const bool wide = m.columns % kWidth == 0 && m.row_stride % kWidth == 0 &&
                    reinterpret_cast<uintptr_t>(m.rows) % 16 == 0 && reinterpret_cast<uintptr_t>(m.out) % 16 == 0;
  if (wide) {
    return launch(mix_rows_kernel<kIn, kOut, kWidth>, blocks_for(m.batch * m.columns / kWidth, kThreads), kThreads, 0,
                  stream, m);
  }
  return launch(mix_rows_kernel<kIn, kOut, 1>, blocks_for(m.batch * m.columns, kThreads), kThreads, 0, stream, m);
}

template <Format kIn>
int choose_rows(const MixRows& m, void* stream) {
  switch (m.format) {
    case Format::f32: return run_rows<kIn, Format::f32>(m, stream);
    case Format::f16: return run_rows<kIn, Format::f16>(m, stream);
    case Format::bf16: return run_rows<kIn, Format::bf16>(m, stream);
    default: return run_rows<kIn, Format::f64>(m, stream);
  }
}

template <Format kOut>
__global__ void __launch_bounds__(kThreads) mix_labels_kernel(MixLabels m) {
  using Wide = typename Element<kOut>::Wide;
  const int64_t total = m.batch * m.classes;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t b = i / m.classes, column = i - b * m.classes;
    const int64_t label = m.label[b], partner_label = m.partner_label[b];
    const float weight = m.lam[b];
    const Wide lam = weight;
    const bool in_range = label >= 0 && label < m.classes && partner_label >= 0 && partner_label < m.classes;
    const bool valid = in_range && is_weight(weight);
    if (!valid && column == 0) set_error(m.error_flag, sample_error(in_range));
    const Wide target = (column == label ? lam : Wide{0}) + (column == partner_label ? 1 - lam : Wide{0});
    static_cast<TypeOf<kOut>*>(m.out)[i] = Element<kOut>::store(valid ? target : not_a_number<Wide>());
  }
}

}  // namespace

int mix_rows(const MixRows& args, void* stream) {
  if (args.batch == 0 || args.columns == 0) return 0;
  switch (args.rows_format) {
    case Format::f32: return choose_rows<Format::f32>(args, stream);
    case Format::f16: return choose_rows<Format::f16>(args, stream);
    case Format::bf16: return choose_rows<Format::bf16>(args, stream);
    default: return choose_rows<Format::f64>(args, stream);
  }
}

int mix_labels(const MixLabels& args, void* stream) {
  if (args.batch == 0 || args.classes == 0) return 0;
  const int64_t blocks = blocks_for(args.batch * args.classes, kThreads);
  switch (args.format) {
    case Format::f32: return launch(mix_labels_kernel<Format::f32>, blocks, kThreads, 0, stream, args);
    case Format::f16: return launch(mix_labels_kernel<Format::f16>, blocks, kThreads, 0, stream, args);
    case Format::bf16: return launch(mix_labels_kernel<Format::bf16>, blocks, kThreads, 0, stream, args);
    default: return launch(mix_labels_kernel<Format::f64>, blocks, kThreads, 0, stream, args);
  }
}

}  // namespace spurmix::cuda

// mix_embeddings, and the forward pass of BERT's embedding block: a warp per token, or a block if rows are long.
#include "embeddings.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

// Grid-stride loop. A thread processes kWidth adjacent columns.
template <Format kTable, int kWidth>
__global__ void __launch_bounds__(kThreads) mix_embeddings_kernel(MixEmbeddings m) {
  const int64_t vectors = m.columns / kWidth, total = m.lookups.tokens * vectors;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t token = i / vectors, column = (i - token * vectors) * kWidth;
    const Words<kTable> words(m, token);
    if (!words.valid && column == 0) set_error(m.error_flag, sample_error(words.ids_in_range));
    typename Words<kTable>::Wide x[kWidth];
    words.load(column, x);
    store_vector(m.format, m.out, token * m.columns + column, x);
  }
}

template <Format kTable>
int launch_mix(const MixEmbeddings& m, void* stream) {
  constexpr int kWide = kVectorWidth<kTable>;
  const int64_t values = m.lookups.tokens * m.columns;
  if (is_vectorizable(kWide, m.columns, m.row_stride, m.weight, m.out)) {
    return launch(mix_embeddings_kernel<kTable, kWide>, blocks_for(values / kWide, kThreads), kThreads, 0, stream, m);
  }
  return launch(mix_embeddings_kernel<kTable, 1>, blocks_for(values, kThreads), kThreads, 0, stream, m);
}

// ---- BERT's embedding block

__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }

// kLanes threads process a token: a warp, or a block for long rows.
template <Format kTable, int kWidth, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) bert_embeddings_kernel(BertEmbeddings m) {
  using Wide = typename Element<kTable>::Wide;
  constexpr int kInRegisters = kRegisterVectors<kLanes, Wide, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t token = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool present = token < m.words.lookups.tokens;  // the same for all lanes of a warp
  const int64_t columns = present ? m.words.columns : 0;
  const BertSum<kTable> bert_sum(m, present ? token : 0);
  if (present && lane == 0 && !bert_sum.words.valid) {
    set_error(m.words.error_flag, sample_error(bert_sum.words.ids_in_range));
  }

  Wide x[kInRegisters][kWidth];
  for_each_vector<kLanes, kWidth, kInRegisters>(
      columns, lane, [&](int j, int64_t column) { bert_sum.load(column, x[j]); }, [](int64_t) {});
  const auto visit_all = [&](auto visit) {
    for_each_vector<kLanes, kWidth, kInRegisters>(
        columns, lane, [&](int j, int64_t column) { visit(x[j], column); },
        [&](int64_t column) {
          Wide again[kWidth];
          bert_sum.load(column, again);
          visit(again, column);
        });
  };
  Wide sum = 0;
  visit_all([&](const Wide(&v)[kWidth], int64_t) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += v[k];
  });
  const Wide count = static_cast<Wide>(m.words.columns), mean = sum_over<kLanes>(sum) / count;
  Wide squares = 0;
  visit_all([&](const Wide(&v)[kWidth], int64_t) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) squares += (v[k] - mean) * (v[k] - mean);
  });
  const Wide rstd = 1 / square_root(sum_over<kLanes>(squares) / count + static_cast<Wide>(m.eps));
  visit_all([&](const Wide(&v)[kWidth], int64_t column) {
    Wide scale[kWidth], out[kWidth];
    load_vector<kTable>(m.norm_weight, column, scale);
    load_vector<kTable>(m.norm_bias, column, out);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) out[k] += (v[k] - mean) * rstd * scale[k];
    store_vector(m.words.format, m.words.out, token * columns + column, out);
  });
  if (!present || lane != 0) return;
  static_cast<Wide*>(m.mean)[token] = mean;
  static_cast<Wide*>(m.rstd)[token] = rstd;
}

template <Format kTable>
int launch_bert(const BertEmbeddings& m, void* stream) {
  using Wide = typename Element<kTable>::Wide;
  constexpr int kWide = kVectorWidth<kTable>;
  const int64_t tokens = m.words.lookups.tokens;
  if (!bert_is_vectorizable<kTable>(m)) {
    return launch(bert_embeddings_kernel<kTable, 1, kThreads>, tokens, kThreads, 0, stream, m);
  }
  if (m.words.columns * static_cast<int64_t>(sizeof(Wide)) > kRegisterBytes<kWarp> * kWarp) {
    return launch(bert_embeddings_kernel<kTable, kWide, kThreads>, tokens, kThreads, 0, stream, m);
  }
  constexpr int kWarps = kThreads / kWarp;
  return launch(bert_embeddings_kernel<kTable, kWide, kWarp>, (tokens + kWarps - 1) / kWarps, kThreads, 0, stream, m);
}

}  // namespace

int mix_embeddings(const MixEmbeddings& args, void* stream) {
  if (args.lookups.tokens == 0 || args.columns == 0) return 0;
  switch (args.table_format) {
    case Format::f32: return launch_mix<Format::f32>(args, stream);
    case Format::f16: return launch_mix<Format::f16>(args, stream);
    case Format::bf16: return launch_mix<Format::bf16>(args, stream);
    default: return launch_mix<Format::f64>(args, stream);
  }
}

int bert_embeddings(const BertEmbeddings& args, void* stream) {
  if (args.words.lookups.tokens == 0) return 0;
  switch (args.words.table_format) {
    case Format::f32: return launch_bert<Format::f32>(args, stream);
    case Format::f16: return launch_bert<Format::f16>(args, stream);
    case Format::bf16: return launch_bert<Format::bf16>(args, stream);
    default: return launch_bert<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda

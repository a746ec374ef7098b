// Mixed token embeddings: a thread takes a run of neighbouring columns. BERT's block: a warp a token, or a block where
// rows are long.
#include "text.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

template <Format kTable>
constexpr int kVector = 16 / sizeof(TypeOf<kTable>);

// The rows and weights of a token, in the table's memory.
template <Format kTable>
struct Words {
  using Wide = typename Element<kTable>::Wide;
  const TypeOf<kTable>*own, *other;
  Wide a, b;
  bool known;

  __device__ __forceinline__ Words(const MixEmbeddings& m, int64_t token) {
    const int64_t id = m.lookups.ids[token], partner = m.lookups.partner_ids[token];
    known = inside(id, m.total) && inside(partner, m.total);
    own = static_cast<const TypeOf<kTable>*>(m.weight) + (known ? id : 0) * m.row_stride;
    other = static_cast<const TypeOf<kTable>*>(m.weight) + (known ? partner : 0) * m.row_stride;
    a = own_weight<Wide>(m.lookups, token);
    b = partner_weight<Wide>(m.lookups, token);
  }

  template <int kWidth>
  __device__ __forceinline__ void load(int64_t column, Wide (&x)[kWidth]) const {
    Wide p[kWidth] = {}, q[kWidth] = {};
    if (known && a != 0) load_run<kTable>(own, column, p);
    if (known && b != 0) load_run<kTable>(other, column, q);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] = known ? a * p[k] + b * q[k] : static_cast<Wide>(nan_value());
  }
};

template <Format kTable, int kWidth>
__global__ void __launch_bounds__(kThreads) mix_embeddings_kernel(MixEmbeddings m) {
  const int64_t units = m.columns / kWidth, total = m.lookups.tokens * units;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t token = i / units, column = (i - token * units) * kWidth;
    const Words<kTable> words(m, token);
    if (!words.known && column == 0) raise(m.flag, kBadIndex);
    typename Words<kTable>::Wide x[kWidth];
    words.load(column, x);
    store_run(m.format, m.out, token * m.columns + column, x);
  }
}

template <Format kTable>
int run_mix(const MixEmbeddings& m, void* stream) {
  constexpr int kWide = kVector<kTable>;
  const int64_t values = m.lookups.tokens * m.columns;
  if (runs_are_whole(kWide, m.columns, m.row_stride, m.weight, m.out)) {
    return launch(mix_embeddings_kernel<kTable, kWide>, blocks_for(values / kWide, kThreads), kThreads, 0, stream, m);
  }
  return launch(mix_embeddings_kernel<kTable, 1>, blocks_for(values, kThreads), kThreads, 0, stream, m);
}

// ---- BERT's block

// Mixed words + position + type of a token.
template <Format kTable>
struct Embedded {
  using Type = TypeOf<kTable>;
  using Wide = typename Element<kTable>::Wide;
  Words<kTable> words;
  const Type *position, *type;  // type: or null

  __device__ __forceinline__ Embedded(const BertEmbeddings& m, int64_t token) : words(m.words, token) {
    const int64_t at = m.position_ids[token], kind = m.token_type_ids == nullptr ? 0 : m.token_type_ids[token];
    words.known = words.known && inside(at, m.positions) && (m.type_weight == nullptr || inside(kind, m.types));
    const int64_t columns = words.known ? m.words.columns : 0;
    position = static_cast<const Type*>(m.position_weight) + at * columns;
    type = m.type_weight == nullptr ? nullptr : static_cast<const Type*>(m.type_weight) + kind * columns;
  }

  template <int kWidth>
  __device__ __forceinline__ void load(int64_t column, Wide (&x)[kWidth]) const {
    words.load(column, x);
    if (!words.known) return;
    Wide y[kWidth];
    load_run<kTable>(position, column, y);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] += y[k];
    if (type == nullptr) return;
    load_run<kTable>(type, column, y);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] += y[k];
  }
};

// Of a row's values, how many bytes a thread keeps, and how many runs; what is behind them is looked up again in each
// pass.
template <int kLanes>
constexpr int kKeptBytes = kLanes == kWarp ? 128 : 32;
template <int kLanes, class Wide, int kWidth>
constexpr int kKeptRuns = kWidth == 1 ? 2 : kKeptBytes<kLanes> / static_cast<int>(sizeof(Wide)) / kWidth;

// A thread's runs of a row: kept(j, column) for those that have a place in registers, rest(column) for any behind.
template <int kLanes, int kWidth, int kKept, class Kept, class Rest>
__device__ __forceinline__ void each_run(int64_t columns, int lane, Kept kept, Rest rest) {
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t column = (int64_t{j} * kLanes + lane) * kWidth;
    if (column < columns) kept(j, column);
  }
  for (int64_t column = (int64_t{kKept} * kLanes + lane) * kWidth; column < columns; column += kLanes * kWidth) {
    rest(column);
  }
}

// The sum over a warp, or over the whole block, in all its threads.
template <int kLanes, class T>
__device__ __forceinline__ T sum_over(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  if constexpr (kLanes > kWarp) {
    __shared__ T of_warp[kLanes / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < kLanes / kWarp; ++w) value += of_warp[w];
    __syncthreads();
  }
  return value;
}

__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }

template <Format kTable, int kWidth, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) bert_embeddings_kernel(BertEmbeddings m) {
  using Wide = typename Element<kTable>::Wide;
  constexpr int kKept = kKeptRuns<kLanes, Wide, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t token = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool present = token < m.words.lookups.tokens;  // whole warps at a time
  const int64_t columns = present ? m.words.columns : 0;
  const Embedded<kTable> embedded(m, present ? token : 0);
  if (present && lane == 0 && !embedded.words.known) raise(m.words.flag, kBadIndex);

  Wide x[kKept][kWidth];
  each_run<kLanes, kWidth, kKept>(
      columns, lane, [&](int j, int64_t column) { embedded.load(column, x[j]); }, [](int64_t) {});
  const auto visit_all = [&](auto visit) {
    each_run<kLanes, kWidth, kKept>(
        columns, lane, [&](int j, int64_t column) { visit(x[j], column); },
        [&](int64_t column) {
          Wide again[kWidth];
          embedded.load(column, again);
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
    load_run<kTable>(m.norm_weight, column, scale);
    load_run<kTable>(m.norm_bias, column, out);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) out[k] += (v[k] - mean) * rstd * scale[k];
    store_run(m.words.format, m.words.out, token * columns + column, out);
  });
  if (!present || lane != 0) return;
  static_cast<Wide*>(m.mean)[token] = mean;
  static_cast<Wide*>(m.rstd)[token] = rstd;
}

// A block takes kBertChunk tokens, one after the other.
template <Format kTable, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) bert_backward_kernel(BertBackward b) {
  using Wide = typename Element<kTable>::Wide;
  constexpr Format kWide = kFormatOf<Wide>;
  constexpr int kKept = kKeptRuns<kThreads, Wide, kWidth>;
  const BertEmbeddings& m = b.forward;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t columns = m.words.columns, tokens = m.words.lookups.tokens, first = blockIdx.x * kBertChunk;
  const int64_t last = first + kBertChunk < tokens ? first + kBertChunk : tokens;
  const int64_t along_at = 2 * blockIdx.x * columns, plain_at = along_at + columns;  // in `partial`
  const Wide count = static_cast<Wide>(columns);
  Wide along[kKept][kWidth] = {}, plain[kKept][kWidth] = {};

  for (int64_t token = first; token < last; ++token) {
    const Embedded<kTable> embedded(m, token);
    if (lane == 0 && !embedded.words.known) raise(m.words.flag, kBadIndex);
    const Wide mean = static_cast<const Wide*>(m.mean)[token], rstd = static_cast<const Wide*>(m.rstd)[token];
    // The normalised values and the gradient after LayerNorm's own scale; `upstream` is before it.
    const auto look = [&](int64_t column, Wide(&normed)[kWidth], Wide(&upstream)[kWidth], Wide(&scaled)[kWidth]) {
      embedded.load(column, normed);
      load_run(b.grad_format, b.grad, token * columns + column, upstream);
      load_run<kTable>(m.norm_weight, column, scaled);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        normed[k] = (normed[k] - mean) * rstd;
        scaled[k] *= upstream[k];
      }
    };
    Wide sum = 0, with_normed = 0;
    const auto add = [&](int64_t column, Wide(&normed)[kWidth], Wide(&scaled)[kWidth], Wide(&along_of)[kWidth],
                         Wide(&plain_of)[kWidth]) {
      Wide upstream[kWidth];
      look(column, normed, upstream, scaled);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        along_of[k] += upstream[k] * normed[k];
        plain_of[k] += upstream[k];
        sum += scaled[k];
        with_normed += scaled[k] * normed[k];
      }
    };
    Wide normed[kKept][kWidth], scaled[kKept][kWidth];
    each_run<kThreads, kWidth, kKept>(
        columns, lane, [&](int j, int64_t column) { add(column, normed[j], scaled[j], along[j], plain[j]); },
        [&](int64_t column) {
          Wide n[kWidth], s[kWidth], sums[2][kWidth] = {};
          if (token > first) {
            load_run<kWide>(b.partial, along_at + column, sums[0]);
            load_run<kWide>(b.partial, plain_at + column, sums[1]);
          }
          add(column, n, s, sums[0], sums[1]);
          store_run<kWide>(b.partial, along_at + column, sums[0]);
          store_run<kWide>(b.partial, plain_at + column, sums[1]);
        });
    sum = sum_over<kThreads>(sum) / count;
    with_normed = sum_over<kThreads>(with_normed) / count;
    const auto give = [&](int64_t column, const Wide(&n)[kWidth], const Wide(&s)[kWidth]) {
      Wide out[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) out[k] = rstd * (s[k] - sum - n[k] * with_normed);
      store_run<kWide>(b.grad_mixed, token * columns + column, out);
    };
    each_run<kThreads, kWidth, kKept>(
        columns, lane, [&](int j, int64_t column) { give(column, normed[j], scaled[j]); },
        [&](int64_t column) {
          Wide n[kWidth], upstream[kWidth], s[kWidth];
          look(column, n, upstream, s);
          give(column, n, s);
        });
  }
  each_run<kThreads, kWidth, kKept>(
      columns, lane,
      [&](int j, int64_t column) {
        store_run<kWide>(b.partial, along_at + column, along[j]);
        store_run<kWide>(b.partial, plain_at + column, plain[j]);
      },
      [](int64_t) {});
}

template <Format kTable>
bool bert_runs_are_whole(const BertEmbeddings& m) {
  return runs_are_whole(kVector<kTable>, m.words.columns, m.words.row_stride, m.words.weight, m.position_weight,
                        m.type_weight, m.norm_weight, m.norm_bias, m.words.out);
}

template <Format kTable>
int run_bert(const BertEmbeddings& m, void* stream) {
  using Wide = typename Element<kTable>::Wide;
  constexpr int kWide = kVector<kTable>;
  const int64_t tokens = m.words.lookups.tokens;
  if (!bert_runs_are_whole<kTable>(m)) {
    return launch(bert_embeddings_kernel<kTable, 1, kThreads>, tokens, kThreads, 0, stream, m);
  }
  if (m.words.columns * static_cast<int64_t>(sizeof(Wide)) > kKeptBytes<kWarp> * kWarp) {
    return launch(bert_embeddings_kernel<kTable, kWide, kThreads>, tokens, kThreads, 0, stream, m);
  }
  constexpr int kWarps = kThreads / kWarp;
  return launch(bert_embeddings_kernel<kTable, kWide, kWarp>, (tokens + kWarps - 1) / kWarps, kThreads, 0, stream, m);
}

template <Format kTable>
int run_bert_backward(const BertBackward& b, void* stream) {
  const int64_t chunks = (b.forward.words.lookups.tokens + kBertChunk - 1) / kBertChunk;
  if (bert_runs_are_whole<kTable>(b.forward) && runs_are_whole(1, 1, 1, b.grad, b.grad_mixed, b.partial)) {
    return launch(bert_backward_kernel<kTable, kVector<kTable>>, chunks, kThreads, 0, stream, b);
  }
  return launch(bert_backward_kernel<kTable, 1>, chunks, kThreads, 0, stream, b);
}

}  // namespace

int mix_embeddings(const MixEmbeddings& args, void* stream) {
  if (args.lookups.tokens == 0 || args.columns == 0) return 0;
  switch (args.table_format) {
    case Format::f32: return run_mix<Format::f32>(args, stream);
    case Format::f16: return run_mix<Format::f16>(args, stream);
    case Format::bf16: return run_mix<Format::bf16>(args, stream);
    default: return run_mix<Format::f64>(args, stream);
  }
}

int bert_embeddings(const BertEmbeddings& args, void* stream) {
  if (args.words.lookups.tokens == 0) return 0;
  switch (args.words.table_format) {
    case Format::f32: return run_bert<Format::f32>(args, stream);
    case Format::f16: return run_bert<Format::f16>(args, stream);
    case Format::bf16: return run_bert<Format::bf16>(args, stream);
    default: return run_bert<Format::f64>(args, stream);
  }
}

int bert_backward(const BertBackward& args, void* stream) {
  if (args.forward.words.lookups.tokens == 0) return 0;
  switch (args.forward.words.table_format) {
    case Format::f32: return run_bert_backward<Format::f32>(args, stream);
    case Format::f16: return run_bert_backward<Format::f16>(args, stream);
    case Format::bf16: return run_bert_backward<Format::bf16>(args, stream);
    default: return run_bert_backward<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda

// Gradients of token embeddings. The gradient of a table sums the entries of each row in sorted order, without atomics.
// The backward pass of BERT's embedding block uses a thread block per chunk of tokens.
#include "embeddings.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) entry_keys_kernel(Entries m) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < m.count; i += int64_t{gridDim.x} * kThreads) {
    const bool partner = i >= m.lookups.tokens;
    const int64_t token = partner ? i - m.lookups.tokens : i;
    const int64_t* ids = partner ? m.lookups.partner_ids : m.lookups.ids;
    const int64_t row = ids == nullptr ? 0 : ids[token];
    const bool id_in_range = in_range(row, m.rows);
    const bool valid =
        id_in_range && (m.lookups.partner_ids == nullptr || is_weight(m.lookups.lam[token / m.lookups.length]));
    if (!valid) set_error(m.error_flag, sample_error(id_in_range));
    float weight = 1;
    if (m.lookups.partner_ids != nullptr) {
      weight = partner ? partner_word_weight<float>(m.lookups, token) : word_weight<float>(m.lookups, token);
    }
    m.key[i] = static_cast<int32_t>(valid && weight != 0 && row != m.padding_idx ? row : m.rows);
  }
}

template <class Wide>
__global__ void __launch_bounds__(kThreads) arrange_entries_kernel(Entries m) {
  const int64_t items = m.count > m.rows ? m.count : m.rows + 1;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < items; i += int64_t{gridDim.x} * kThreads) {
    if (i < m.count && m.weight != nullptr) {
      const bool partner = m.order[i] >= m.lookups.tokens;
      const int64_t token = partner ? m.order[i] - m.lookups.tokens : m.order[i];
      m.token[i] = token;
      static_cast<Wide*>(m.weight)[i] =
          partner ? partner_word_weight<Wide>(m.lookups, token) : word_weight<Wide>(m.lookups, token);
    }
    if (i > m.rows) continue;
    int64_t low = 0, high = m.count;  // binary search for the first key >= i
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (m.key[middle] < i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    m.starts[i] = low;
    if (m.used != nullptr && i < m.rows) m.used[i] = low < m.count && m.key[low] == i;
  }
}

// Adds entries [begin, end) of one row.
template <Format kGrad, class Wide, int kWidth>
__device__ __forceinline__ void add_entries(const SumRows& m, int64_t begin, int64_t end, int64_t column,
                                            Wide (&sum)[kWidth]) {
#pragma unroll 4
  for (int64_t k = begin; k < end; ++k) {
    const Wide weight = m.weight == nullptr ? Wide{1} : static_cast<const Wide*>(m.weight)[k];
    Wide x[kWidth];
    load_vector<kGrad>(m.grad, m.token[k] * m.columns + column, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += weight * x[j];
  }
}

// Sums every piece whose entries belong to one row. The sums of other pieces are neither written nor read.
template <Format kGrad, class Wide, int kWidth>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(SumRows m) {
  const int64_t vectors = m.columns / kWidth, total = m.entries / kPiece * vectors;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t piece = i / vectors, column = (i - piece * vectors) * kWidth, begin = piece * kPiece;
    const int32_t row = m.key[begin];
    if (row >= m.rows || m.key[begin + kPiece - 1] != row) continue;
    Wide sum[kWidth] = {};
    add_entries<kGrad>(m, begin, begin + kPiece, column, sum);
    store_vector<kFormatOf<Wide>>(m.partial, piece * m.columns + column, sum);
  }
}

// Sums the pieces of each row, and its entries before and after them.
template <Format kGrad, class Wide, int kWidth>
__global__ void __launch_bounds__(kThreads, 4) sum_rows_kernel(SumRows m) {
  const int64_t vectors = m.columns / kWidth, total = m.count * vectors;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t r = i / vectors, column = (i - r * vectors) * kWidth, row = m.row == nullptr ? r : m.row[r];
    const int64_t begin = m.starts[row], end = m.starts[row + 1];
    const int64_t first = (begin + kPiece - 1) / kPiece, last = end / kPiece;
    Wide sum[kWidth] = {};
    if (first < last) {
      add_entries<kGrad>(m, begin, first * kPiece, column, sum);
#pragma unroll 4
      for (int64_t piece = first; piece < last; ++piece) {
        Wide x[kWidth];
        load_vector<kFormatOf<Wide>>(m.partial, piece * m.columns + column, x);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum[j] += x[j];
      }
      add_entries<kGrad>(m, last * kPiece, end, column, sum);
    } else {
      add_entries<kGrad>(m, begin, end, column, sum);
    }
    store_vector(m.format, m.out, r * m.columns + column, sum);
  }
}

template <Format kGrad, class Wide, int kWidth>
int launch_sum_kernels(const SumRows& m, void* stream) {
  const int64_t vectors = m.columns / kWidth, pieces = m.entries / kPiece;
  if (pieces > 0) {
    const int64_t blocks = blocks_for(pieces * vectors, kThreads);
    const int code = launch(sum_pieces_kernel<kGrad, Wide, kWidth>, blocks, kThreads, 0, stream, m);
    if (code != 0) return code;
  }
  return launch(sum_rows_kernel<kGrad, Wide, kWidth>, blocks_for(m.count * vectors, kThreads), kThreads, 0, stream, m);
}

// Double sums of narrower gradients are rare, so they are not vectorized.
template <Format kGrad>
int launch_sums(const SumRows& m, void* stream) {
  using GradWide = typename Element<kGrad>::Wide;
  constexpr int kWidth = 16 / sizeof(TypeOf<kGrad>);
  if (m.wide != (sizeof(GradWide) == 8)) return launch_sum_kernels<kGrad, double, 1>(m, stream);
  const bool vectorized = is_vectorizable(kWidth, m.columns, kWidth, m.grad, m.partial, m.out);
  return vectorized ? launch_sum_kernels<kGrad, GradWide, kWidth>(m, stream)
                    : launch_sum_kernels<kGrad, GradWide, 1>(m, stream);
}

// ---- BERT's embedding block

// A block processes kBertChunk tokens, one after the other.
template <Format kTable, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) bert_backward_kernel(BertBackward b) {
  using Wide = typename Element<kTable>::Wide;
  constexpr Format kWide = kFormatOf<Wide>;
  constexpr int kInRegisters = kRegisterVectors<kThreads, Wide, kWidth>;
  const BertEmbeddings& m = b.forward;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t columns = m.words.columns, tokens = m.words.lookups.tokens, first = blockIdx.x * kBertChunk;
  const int64_t last = first + kBertChunk < tokens ? first + kBertChunk : tokens;
  const int64_t scale_offset = 2 * blockIdx.x * columns, bias_offset = scale_offset + columns;  // in `partial`
  const Wide count = static_cast<Wide>(columns);
  Wide scale_sums[kInRegisters][kWidth] = {}, bias_sums[kInRegisters][kWidth] = {};  // over the chunk

  for (int64_t token = first; token < last; ++token) {
    const BertSum<kTable> bert_sum(m, token);
    if (lane == 0 && !bert_sum.words.valid) {
      set_error(m.words.error_flag, sample_error(bert_sum.words.ids_in_range));
    }
    const Wide mean = static_cast<const Wide*>(m.mean)[token], rstd = static_cast<const Wide*>(m.rstd)[token];
    // Loads the normalized input, the upstream gradient, and its product with LayerNorm's scale.
    const auto load = [&](int64_t column, Wide(&normalized)[kWidth], Wide(&upstream)[kWidth], Wide(&scaled)[kWidth]) {
      bert_sum.load(column, normalized);
      load_vector(b.grad_format, b.grad, token * columns + column, upstream);
      load_vector<kTable>(m.norm_weight, column, scaled);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        normalized[k] = (normalized[k] - mean) * rstd;
        scaled[k] *= upstream[k];
      }
    };
    Wide sum = 0, normalized_sum = 0;
    const auto add = [&](int64_t column, Wide(&normalized)[kWidth], Wide(&scaled)[kWidth], Wide(&scale_sum)[kWidth],
                         Wide(&bias_sum)[kWidth]) {
      Wide upstream[kWidth];
      load(column, normalized, upstream, scaled);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        scale_sum[k] += upstream[k] * normalized[k];
        bias_sum[k] += upstream[k];
        sum += scaled[k];
        normalized_sum += scaled[k] * normalized[k];
      }
    };
    Wide normalized[kInRegisters][kWidth], scaled[kInRegisters][kWidth];
    for_each_vector<kThreads, kWidth, kInRegisters>(
        columns, lane,
        [&](int j, int64_t column) { add(column, normalized[j], scaled[j], scale_sums[j], bias_sums[j]); },
        [&](int64_t column) {
          Wide n[kWidth], s[kWidth], sums[2][kWidth] = {};
          if (token > first) {
            load_vector<kWide>(b.partial, scale_offset + column, sums[0]);
            load_vector<kWide>(b.partial, bias_offset + column, sums[1]);
          }
          add(column, n, s, sums[0], sums[1]);
          store_vector<kWide>(b.partial, scale_offset + column, sums[0]);
          store_vector<kWide>(b.partial, bias_offset + column, sums[1]);
        });
    sum = sum_over<kThreads>(sum) / count;
    normalized_sum = sum_over<kThreads>(normalized_sum) / count;
    const auto store = [&](int64_t column, const Wide(&n)[kWidth], const Wide(&s)[kWidth]) {
      Wide out[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) out[k] = rstd * (s[k] - sum - n[k] * normalized_sum);
      store_vector<kWide>(b.grad_mixed, token * columns + column, out);
    };
    for_each_vector<kThreads, kWidth, kInRegisters>(
        columns, lane, [&](int j, int64_t column) { store(column, normalized[j], scaled[j]); },
        [&](int64_t column) {
          Wide n[kWidth], upstream[kWidth], s[kWidth];
          load(column, n, upstream, s);
          store(column, n, s);
        });
  }
  for_each_vector<kThreads, kWidth, kInRegisters>(
      columns, lane,
      [&](int j, int64_t column) {
        store_vector<kWide>(b.partial, scale_offset + column, scale_sums[j]);
        store_vector<kWide>(b.partial, bias_offset + column, bias_sums[j]);
      },
      [](int64_t) {});
}

template <Format kTable>
int launch_bert_backward(const BertBackward& b, void* stream) {
  const int64_t chunks = (b.forward.words.lookups.tokens + kBertChunk - 1) / kBertChunk;
  if (bert_is_vectorizable<kTable>(b.forward) && is_vectorizable(1, 1, 1, b.grad, b.grad_mixed, b.partial)) {
    return launch(bert_backward_kernel<kTable, kVectorWidth<kTable>>, chunks, kThreads, 0, stream, b);
  }
  return launch(bert_backward_kernel<kTable, 1>, chunks, kThreads, 0, stream, b);
}

}  // namespace

int entry_keys(const Entries& args, void* stream) {
  if (args.count == 0) return 0;
  return launch(entry_keys_kernel, blocks_for(args.count, kThreads), kThreads, 0, stream, args);
}

int arrange_entries(const Entries& args, void* stream) {
  const int64_t items = args.count > args.rows ? args.count : args.rows + 1;
  const int64_t blocks = blocks_for(items, kThreads);
  return args.wide ? launch(arrange_entries_kernel<double>, blocks, kThreads, 0, stream, args)
                   : launch(arrange_entries_kernel<float>, blocks, kThreads, 0, stream, args);
}

int sum_rows(const SumRows& args, void* stream) {
  if (args.count == 0 || args.columns == 0) return 0;
  switch (args.grad_format) {
    case Format::f32: return launch_sums<Format::f32>(args, stream);
    case Format::f16: return launch_sums<Format::f16>(args, stream);
    case Format::bf16: return launch_sums<Format::bf16>(args, stream);
    default: return launch_sums<Format::f64>(args, stream);
  }
}

int bert_backward(const BertBackward& args, void* stream) {
  if (args.forward.words.lookups.tokens == 0) return 0;
  switch (args.forward.words.table_format) {
    case Format::f32: return launch_bert_backward<Format::f32>(args, stream);
    case Format::f16: return launch_bert_backward<Format::f16>(args, stream);
    case Format::bf16: return launch_bert_backward<Format::bf16>(args, stream);
    default: return launch_bert_backward<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda

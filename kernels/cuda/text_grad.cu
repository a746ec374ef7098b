// Gradients of tables that tokens looked up: keys to sort by, then sums of each row's entries. A thread takes an entry,
// or a run of neighbouring columns.
#include "text.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) entry_keys_kernel(Entries m) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < m.count; i += int64_t{gridDim.x} * kThreads) {
    const bool partner = i >= m.lookups.tokens;
    const int64_t token = partner ? i - m.lookups.tokens : i;
    const int64_t* ids = partner ? m.lookups.partner_ids : m.lookups.ids;
    const int64_t row = ids == nullptr ? 0 : ids[token];
    const bool known = inside(row, m.rows);
    if (!known) raise(m.flag, kBadIndex);
    float weight = 1;
    if (m.lookups.partner_ids != nullptr) {
      weight = partner ? partner_weight<float>(m.lookups, token) : own_weight<float>(m.lookups, token);
    }
    m.key[i] = static_cast<int32_t>(known && weight != 0 && row != m.padding_idx ? row : m.rows);
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
          partner ? partner_weight<Wide>(m.lookups, token) : own_weight<Wide>(m.lookups, token);
    }
    if (i > m.rows) continue;
    int64_t low = 0, high = m.count;  // of the first key of i or more
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
    load_run<kGrad>(m.grad, m.token[k] * m.columns + column, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += weight * x[j];
  }
}

// The sum of every piece that lies within one row; others are left unwritten, and unread below.
template <Format kGrad, class Wide, int kWidth>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(SumRows m) {
  const int64_t units = m.columns / kWidth, total = m.entries / kPiece * units;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t piece = i / units, column = (i - piece * units) * kWidth, begin = piece * kPiece;
    const int32_t row = m.key[begin];
    if (row >= m.rows || m.key[begin + kPiece - 1] != row) continue;
    Wide sum[kWidth] = {};
    add_entries<kGrad>(m, begin, begin + kPiece, column, sum);
    store_run<kFormatOf<Wide>>(m.partial, piece * m.columns + column, sum);
  }
}

template <Format kGrad, class Wide, int kWidth>
__global__ void __launch_bounds__(kThreads, 4) sum_rows_kernel(SumRows m) {
  const int64_t units = m.columns / kWidth, total = m.count * units;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t r = i / units, column = (i - r * units) * kWidth, row = m.row == nullptr ? r : m.row[r];
    const int64_t begin = m.starts[row], end = m.starts[row + 1];
    const int64_t first = (begin + kPiece - 1) / kPiece, last = end / kPiece;
    Wide sum[kWidth] = {};
    if (first < last) {
      add_entries<kGrad>(m, begin, first * kPiece, column, sum);
#pragma unroll 4
      for (int64_t piece = first; piece < last; ++piece) {
        Wide x[kWidth];
        load_run<kFormatOf<Wide>>(m.partial, piece * m.columns + column, x);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum[j] += x[j];
      }
      add_entries<kGrad>(m, last * kPiece, end, column, sum);
    } else {
      add_entries<kGrad>(m, begin, end, column, sum);
    }
    store_run(m.format, m.out, r * m.columns + column, sum);
  }
}

template <Format kGrad, class Wide, int kWidth>
int run_sums(const SumRows& m, void* stream) {
  const int64_t units = m.columns / kWidth, pieces = m.entries / kPiece;
  if (pieces > 0) {
    const int64_t blocks = blocks_for(pieces * units, kThreads);
    const int code = launch(sum_pieces_kernel<kGrad, Wide, kWidth>, blocks, kThreads, 0, stream, m);
    if (code != 0) return code;
  }
  return launch(sum_rows_kernel<kGrad, Wide, kWidth>, blocks_for(m.count * units, kThreads), kThreads, 0, stream, m);
}

// Sums in double of narrower gradients, which are rare, go by single columns.
template <Format kGrad>
int choose_sums(const SumRows& m, void* stream) {
  using Own = typename Element<kGrad>::Wide;
  constexpr int kWidth = 16 / sizeof(TypeOf<kGrad>);
  if (m.wide != (sizeof(Own) == 8)) return run_sums<kGrad, double, 1>(m, stream);
  const bool whole = runs_are_whole(kWidth, m.columns, kWidth, m.grad, m.partial, m.out);
  return whole ? run_sums<kGrad, Own, kWidth>(m, stream) : run_sums<kGrad, Own, 1>(m, stream);
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
    case Format::f32: return choose_sums<Format::f32>(args, stream);
    case Format::f16: return choose_sums<Format::f16>(args, stream);
    case Format::bf16: return choose_sums<Format::bf16>(args, stream);
    default: return choose_sums<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda

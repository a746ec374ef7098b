// Shared by the kernels on token embeddings: vectors of adjacent columns, weights of a token, and the rows it looks up.
#pragma once

#include "device.cuh"

namespace spurmix::cuda {

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Vector {
  T v[kWidth];
};

// Loads kWidth adjacent columns.
template <Format kFormat, class Wide, int kWidth>
__device__ __forceinline__ void load_vector(const void* base, int64_t at, Wide (&x)[kWidth]) {
  using Type = TypeOf<kFormat>;
  const auto vector = *reinterpret_cast<const Vector<Type, kWidth>*>(static_cast<const Type*>(base) + at);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) x[k] = static_cast<Wide>(Element<kFormat>::load(vector.v[k]));
}

template <class Wide, int kWidth>
__device__ __forceinline__ void load_vector(Format format, const void* base, int64_t at, Wide (&x)[kWidth]) {
  switch (format) {
    case Format::f32: return load_vector<Format::f32>(base, at, x);
    case Format::f16: return load_vector<Format::f16>(base, at, x);
    case Format::bf16: return load_vector<Format::bf16>(base, at, x);
    default: return load_vector<Format::f64>(base, at, x);
  }
}

template <Format kFormat, class Wide, int kWidth>
__device__ __forceinline__ void store_vector(void* base, int64_t at, const Wide (&x)[kWidth]) {
  using Type = TypeOf<kFormat>;
  Vector<Type, kWidth> vector;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) vector.v[k] = Element<kFormat>::store(x[k]);
  *reinterpret_cast<Vector<Type, kWidth>*>(static_cast<Type*>(base) + at) = vector;
}

template <class Wide, int kWidth>
__device__ __forceinline__ void store_vector(Format format, void* base, int64_t at, const Wide (&x)[kWidth]) {
  switch (format) {
    case Format::f32: return store_vector<Format::f32>(base, at, x);
    case Format::f16: return store_vector<Format::f16>(base, at, x);
    case Format::bf16: return store_vector<Format::bf16>(base, at, x);
    default: return store_vector<Format::f64>(base, at, x);
  }
}

// The format of sums of type Wide in memory.
template <class Wide>
constexpr Format kFormatOf = sizeof(Wide) == 8 ? Format::f64 : Format::f32;

template <class Wide>
__device__ __forceinline__ Wide word_weight(const Lookups& m, int64_t token) {
  return m.mask == nullptr || m.mask[token] ? static_cast<Wide>(m.lam[token / m.length]) : Wide{0};
}

template <class Wide>
__device__ __forceinline__ Wide partner_word_weight(const Lookups& m, int64_t token) {
  const bool kept = m.partner_mask == nullptr || m.partner_mask[token];
  return kept ? 1 - static_cast<Wide>(m.lam[token / m.length]) : Wide{0};
}

__device__ __forceinline__ bool in_range(int64_t id, int64_t count) { return id >= 0 && id < count; }

// Whether `columns` and `row_stride` are multiples of `width`, and all pointers are aligned to 16 bytes. Null is
// aligned.
template <class... Bases>
bool is_vectorizable(int width, int64_t columns, int64_t row_stride, const Bases*... bases) {
  return columns % width == 0 && row_stride % width == 0 && ((reinterpret_cast<uintptr_t>(bases) % 16 == 0) && ...);
}

// Columns in 16 bytes.
template <Format kTable>
constexpr int kVectorWidth = 16 / sizeof(TypeOf<kTable>);

// The two rows of the word table that a token looks up, and their weights.
template <Format kTable>
struct Words {
  using Wide = typename Element<kTable>::Wide;
  const TypeOf<kTable>*row, *partner_row;
  Wide weight, partner_weight;
  bool ids_in_range;
  bool valid;  // the ids are in range, and lam is in [0, 1]

  __device__ __forceinline__ Words(const MixEmbeddings& m, int64_t token) {
    const int64_t id = m.lookups.ids[token], partner_id = m.lookups.partner_ids[token];
    ids_in_range = in_range(id, m.total) && in_range(partner_id, m.total);
    valid = ids_in_range && is_weight(m.lookups.lam[token / m.lookups.length]);
    row = static_cast<const TypeOf<kTable>*>(m.weight) + (valid ? id : 0) * m.row_stride;
    partner_row = static_cast<const TypeOf<kTable>*>(m.weight) + (valid ? partner_id : 0) * m.row_stride;
    weight = word_weight<Wide>(m.lookups, token);
    partner_weight = partner_word_weight<Wide>(m.lookups, token);
  }

  // The mixed word embedding; NaN if it is not valid.
  template <int kWidth>
  __device__ __forceinline__ void load(int64_t column, Wide (&x)[kWidth]) const {
    Wide p[kWidth] = {}, q[kWidth] = {};
    if (valid && weight != 0) load_vector<kTable>(row, column, p);
    if (valid && partner_weight != 0) load_vector<kTable>(partner_row, column, q);
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      x[k] = valid ? weight * p[k] + partner_weight * q[k] : static_cast<Wide>(nan_value());
  }
};

// ---- BERT's embedding block

// The input of BERT's LayerNorm for a token: mixed words + position + type.
template <Format kTable>
struct BertSum {
  using Type = TypeOf<kTable>;
  using Wide = typename Element<kTable>::Wide;
  Words<kTable> words;
  const Type *position, *type;  // rows; type is null without type embeddings

  __device__ __forceinline__ BertSum(const BertEmbeddings& m, int64_t token) : words(m.words, token) {
    const int64_t position_id = m.position_ids[token];
    const int64_t type_id = m.token_type_ids == nullptr ? 0 : m.token_type_ids[token];
    words.ids_in_range = words.ids_in_range && in_range(position_id, m.positions) &&
                         (m.type_weight == nullptr || in_range(type_id, m.types));
    words.valid = words.valid && words.ids_in_range;
    const int64_t columns = words.valid ? m.words.columns : 0;
    position = static_cast<const Type*>(m.position_weight) + position_id * columns;
    type = m.type_weight == nullptr ? nullptr : static_cast<const Type*>(m.type_weight) + type_id * columns;
  }

  template <int kWidth>
  __device__ __forceinline__ void load(int64_t column, Wide (&x)[kWidth]) const {
    words.load(column, x);
    if (!words.valid) return;
    Wide y[kWidth];
    load_vector<kTable>(position, column, y);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] += y[k];
    if (type == nullptr) return;
    load_vector<kTable>(type, column, y);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] += y[k];
  }
};

template <Format kTable>
bool bert_is_vectorizable(const BertEmbeddings& m) {
  return is_vectorizable(kVectorWidth<kTable>, m.words.columns, m.words.row_stride, m.words.weight, m.position_weight,
                         m.type_weight, m.norm_weight, m.norm_bias, m.words.out);
}

// Bytes and vectors of a row that each thread keeps in registers. The remaining columns are looked up again in each
// pass.
template <int kLanes>
constexpr int kRegisterBytes = kLanes == kWarp ? 128 : 32;
template <int kLanes, class Wide, int kWidth>
constexpr int kRegisterVectors = kWidth == 1 ? 2 : kRegisterBytes<kLanes> / static_cast<int>(sizeof(Wide)) / kWidth;

// Visits the vectors of a row that belong to a lane: in_registers(j, column) for those that are kept in registers, and
// rest(column) for the others.
template <int kLanes, int kWidth, int kInRegisters, class InRegisters, class Rest>
__device__ __forceinline__ void for_each_vector(int64_t columns, int lane, InRegisters in_registers, Rest rest) {
#pragma unroll
  for (int j = 0; j < kInRegisters; ++j) {
    const int64_t column = (int64_t{j} * kLanes + lane) * kWidth;
    if (column < columns) in_registers(j, column);
  }
  for (int64_t column = (int64_t{kInRegisters} * kLanes + lane) * kWidth; column < columns; column += kLanes * kWidth) {
    rest(column);
  }
}

// Sum over a warp or over the whole block. All threads get the result.
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

}  // namespace spurmix::cuda

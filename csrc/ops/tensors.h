// Tensors of the stable ABI, and the checks that all operators use.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "../pixel.h"

// The library and the dispatch key that the operators of this module are registered for. The sources in this folder are
// compiled once per module: for `_C`, for `_cuda` (USE_CUDA), and for the tests, which run the CUDA kernels on CPU
// tensors (SPURMIX_EMULATED).
#if defined(SPURMIX_EMULATED)
#define SPURMIX_LIBRARY spurmix_emulated
#define SPURMIX_KEY CPU
#elif defined(USE_CUDA)
#define SPURMIX_LIBRARY spurmix
#define SPURMIX_KEY CUDA
#else
#define SPURMIX_LIBRARY spurmix
#define SPURMIX_KEY CPU
#endif

#define SPURMIX_CHECK(condition, ...) STD_TORCH_CHECK(condition, "spurmix::", __VA_ARGS__)

namespace spurmix {
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#if defined(SPURMIX_EMULATED)
constexpr const char* kOnDevice = "on the emulated GPU";
inline bool on_device(const Tensor& t) { return t.is_cpu(); }
#elif defined(USE_CUDA)
constexpr const char* kOnDevice = "on a GPU";
inline bool on_device(const Tensor& t) { return t.is_cuda(); }
#else
constexpr const char* kOnDevice = "on the CPU";
inline bool on_device(const Tensor& t) { return t.is_cpu(); }
#endif

// Checks that `t` is a contiguous tensor of this shape and dtype on the device of this module.
inline void check(const Tensor& t, const char* op, const char* name, ScalarType type,
                  std::initializer_list<int64_t> shape) {
  SPURMIX_CHECK(on_device(t), op, ": ", name, " must be ", kOnDevice);
  SPURMIX_CHECK(t.scalar_type() == type, op, ": ", name, " has the wrong dtype");
  SPURMIX_CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " has the wrong rank ", t.dim());
  int64_t k = 0;
  for (const int64_t size : shape) {
    SPURMIX_CHECK(t.size(k) == size, op, ": ", name, " has size ", t.size(k), " in dimension ", k, ", expected ", size);
    ++k;
  }
  SPURMIX_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

// Checks that `t` is a matrix with contiguous rows on the device of this module.
inline void check_rows(const Tensor& t, const char* op, const char* name, const char* shape) {
  SPURMIX_CHECK(on_device(t) && t.dim() == 2, op, ": ", name, " must be ", shape, " ", kOnDevice);
  SPURMIX_CHECK(t.numel() == 0 || t.size(1) <= 1 || t.stride(1) == 1, op, ": each row of ", name,
                " must be contiguous");
}

// A tensor with the name of its argument, and the addresses from its first to its last element.
struct Extent {
  const char* name;
  uintptr_t begin = 0, end = 0;

  Extent(const Tensor& t, const char* argument) : name(argument) {
    if (t.numel() == 0) return;
    int64_t last = 0;
    for (int64_t k = 0; k < t.dim(); ++k) last += (t.size(k) - 1) * t.stride(k);
    begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    end = begin + (last + 1) * t.element_size();
  }

  Extent(const OptionalTensor& t, const char* argument) : name(argument) {
    if (t.has_value()) *this = Extent(*t, argument);
  }

  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

// Checks that no output shares memory with an input or with another output: kernels write while they read.
inline void check_disjoint(std::initializer_list<Extent> outputs, std::initializer_list<Extent> inputs,
                           const char* op) {
  const Extent* all = outputs.begin();
  for (size_t k = 0; k < outputs.size(); ++k) {
    for (const Extent& input : inputs) {
      SPURMIX_CHECK(!all[k].overlaps(input), op, ": ", all[k].name, " must not share memory with ", input.name);
    }
    for (size_t j = 0; j < k; ++j) {
      SPURMIX_CHECK(!all[k].overlaps(all[j]), op, ": ", all[k].name, " must not share memory with ", all[j].name);
    }
  }
}

inline Format format_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
    case ScalarType::Float: return Format::f32;
    case ScalarType::Half: return Format::f16;
    case ScalarType::BFloat16: return Format::bf16;
    case ScalarType::Double: return Format::f64;
    default: SPURMIX_CHECK(false, op, ": ", name, " must be float32, float16, bfloat16 or float64");
  }
  return Format::f32;
}

inline Format format_of(const Tensor& t, const char* op, const char* name) {
  return format_of(t.scalar_type(), op, name);
}

// Float64 if either dtype is, else float32: the dtype of sums and statistics.
inline ScalarType wide_type(ScalarType first, ScalarType second) {
  return first == ScalarType::Double || second == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline ScalarType wide_type(const Tensor& t) { return wide_type(t.scalar_type(), t.scalar_type()); }

// An uninitialized tensor on the device of `like`. It calls the C function directly: torch::stable::empty looks up an
// operator by name, which is a large part of a small operator's time.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.begin(), static_cast<int64_t>(shape.size()),
                                                   &dtype, nullptr, nullptr, 0, nullptr, &handle));
  return Tensor(handle);
}

// An uninitialized batch of images [B, C, h, w].
inline Tensor fresh_images(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type,
                           bool channels_last) {
  const MemoryFormat layout = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty({shape.begin(), shape.size()}, type, std::nullopt, like.device(), std::nullopt, layout);
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Null if there is no tensor.
template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace spurmix

// What the CPU operators share: argument checks and outputs. The schemas stand in spurmix/ops/schema.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "cpu/kernels.h"

namespace spurmix {
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define SPURMIX_CHECK(condition, ...) STD_TORCH_CHECK(condition, "spurmix::", __VA_ARGS__)

inline void check(const Tensor& t, const char* op, const char* name, ScalarType type,
                  std::initializer_list<int64_t> shape) {
  SPURMIX_CHECK(t.is_cpu(), op, ": ", name, " must be on the CPU");
  SPURMIX_CHECK(t.scalar_type() == type, op, ": ", name, " has the wrong dtype");
  SPURMIX_CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " has the wrong rank ", t.dim());
  int64_t k = 0;
  for (const int64_t size : shape) {
    SPURMIX_CHECK(t.size(k) == size, op, ": ", name, " has size ", t.size(k), " in dimension ", k, ", expected ", size);
    ++k;
  }
  SPURMIX_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

inline cpu::Format format_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
    case ScalarType::Float: return cpu::Format::f32;
    case ScalarType::Half: return cpu::Format::f16;
    case ScalarType::BFloat16: return cpu::Format::bf16;
    case ScalarType::Double: return cpu::Format::f64;
    default: SPURMIX_CHECK(false, op, ": ", name, " must be float32, float16, bfloat16 or float64");
  }
  return cpu::Format::f32;
}

inline void check_range(const int64_t* values, int64_t count, int64_t limit, const char* op, const char* name) {
  const int64_t at = cpu::first_outside(values, count, limit);
  SPURMIX_CHECK(at < 0, op, ": ", name, "[", at, "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", limit, ")");
}

// An uninitialised tensor on the device of `like`, by the shim that looks no operator up by name: of a small op's time
// that search is a good part.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  int32_t wanted = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.begin(), static_cast<int64_t>(shape.size()),
                                                   &wanted, nullptr, nullptr, 0, nullptr, &handle));
  return Tensor(handle);
}

// An uninitialised batch of images [B, C, h, w].
inline Tensor fresh_images(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type,
                           bool channels_last) {
  const MemoryFormat layout = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty({shape.begin(), shape.size()}, type, std::nullopt, like.device(), std::nullopt, layout);
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Whether `t` [B, C, h, w] is channels last; an error where it is neither that nor contiguous.
inline bool is_channels_last(const Tensor& t, const char* op) {
  if (t.is_contiguous()) return false;
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t dense[4] = {c * h * w, 1, w * c, c};
  for (int k = 0; k < 4; ++k) {
    SPURMIX_CHECK(t.size(k) <= 1 || t.stride(k) == dense[k], op, ": out must be contiguous or channels_last");
  }
  return true;
}

}  // namespace spurmix

// What the operators of all devices share: argument checks and outputs. The schemas stand in spurmix/ops/schema.py.
//
// SPURMIX_HERE(tensor) and SPURMIX_WHERE, which ops_cpu.h and ops_cuda.h define, say whether a tensor is where the ops
// run.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <vector>

#include "draw.h"
#include "pixel.h"

namespace spurmix {
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define SPURMIX_CHECK(condition, ...) STD_TORCH_CHECK(condition, "spurmix::", __VA_ARGS__)

inline void check(const Tensor& t, const char* op, const char* name, ScalarType type,
                  std::initializer_list<int64_t> shape) {
  SPURMIX_CHECK(SPURMIX_HERE(t), op, ": ", name, " must be ", SPURMIX_WHERE);
  SPURMIX_CHECK(t.scalar_type() == type, op, ": ", name, " has the wrong dtype");
  SPURMIX_CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " has the wrong rank ", t.dim());
  int64_t k = 0;
  for (const int64_t size : shape) {
    SPURMIX_CHECK(t.size(k) == size, op, ": ", name, " has size ", t.size(k), " in dimension ", k, ", expected ", size);
    ++k;
  }
  SPURMIX_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
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

// ---- checks of the arguments that several ops take

// uint8 [N, H, W, C] whose images are contiguous, wherever they are, and their normalisation.
inline void check_images(const Tensor& images, const Tensor& mean, const Tensor& std, const char* op) {
  SPURMIX_CHECK(images.scalar_type() == ScalarType::Byte && images.dim() == 4, op,
                ": images must be uint8 [N, H, W, C]");
  const int64_t h = images.size(1), w = images.size(2), c = images.size(3);
  SPURMIX_CHECK(h > 0 && w > 0 && c > 0, op, ": images must have height, width and channels of 1 or more");
  SPURMIX_CHECK(
      (c == 1 || images.stride(3) == 1) && (w == 1 || images.stride(2) == c) && (h == 1 || images.stride(1) == w * c),
      op, ": each image must be contiguous [H, W, C]");
  check(mean, op, "mean", ScalarType::Float, {c});
  check(std, op, "std", ScalarType::Float, {c});
}

// The output [batch, C, h, w] of a mix of `images`; without crops it has their size.
inline void check_image_output(const Tensor& images, const Tensor& out, int64_t batch, bool crops, const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(out) && out.dim() == 4, op, ": out must be [B, C, h, w] ", SPURMIX_WHERE);
  SPURMIX_CHECK(out.size(0) == batch && out.size(1) == images.size(3), op, ": out must have shape [", batch, ", ",
                images.size(3), ", h, w]");
  SPURMIX_CHECK(out.size(2) > 0 && out.size(3) > 0, op, ": out must have positive height and width");
  SPURMIX_CHECK(format_of(out.scalar_type(), op, "out") != Format::f64, op,
                ": out must be float32, float16 or bfloat16");
  SPURMIX_CHECK(batch == 0 || crops || (out.size(2) == images.size(1) && out.size(3) == images.size(2)), op,
                ": another size than the images' needs boxes");
}

inline void check_crops(const OptionalTensor& boxes, const OptionalTensor& flips, int64_t batch, const char* op) {
  if (boxes.has_value()) check(*boxes, op, "boxes", ScalarType::Float, {batch, 2, 4});
  if (!flips.has_value()) return;
  const ScalarType type = flips->scalar_type();
  SPURMIX_CHECK(type == ScalarType::Byte || type == ScalarType::Bool, op, ": flips must be uint8 or bool");
  check(*flips, op, "flips", type, {batch, 2});
}

inline void check_pairs(const Tensor& index, const Tensor& partner, const Tensor& lam, int64_t batch, const char* op) {
  check(index, op, "index", ScalarType::Long, {batch});
  check(partner, op, "partner", ScalarType::Long, {batch});
  check(lam, op, "lam", ScalarType::Float, {batch});
}

inline void check_label_pairs(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t batch,
                              const char* op) {
  check(label, op, "label", ScalarType::Long, {batch});
  check(partner_label, op, "partner_label", ScalarType::Long, {batch});
  check(lam, op, "lam", ScalarType::Float, {batch});
}

inline void check_logits(const Tensor& logits, const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(logits) && logits.dim() == 2 && logits.size(1) >= 1, op, ": logits must be [B, C] ",
                SPURMIX_WHERE);
  SPURMIX_CHECK(logits.numel() == 0 || logits.size(1) == 1 || logits.stride(1) == 1, op,
                ": each row of logits must be contiguous");
}

inline void check_sequence(int64_t seed, int64_t start, int64_t count, const char* op) {
  SPURMIX_CHECK(seed >= 0, op, ": seed must lie in [0, 2^63)");
  SPURMIX_CHECK(start >= 0 && count >= 0 && (count == 0 || start <= INT64_MAX - (count - 1)), op,
                ": start and count must name samples in [0, 2^63)");
}

inline Crop crop_of(bool crop, double scale_min, double scale_max, double ratio_min, double ratio_max, bool flip) {
  return {crop,
          static_cast<float>(scale_min),
          static_cast<float>(scale_max),
          static_cast<float>(std::log(ratio_min)),
          static_cast<float>(std::log(ratio_max)),
          flip};
}

// ---- the loss

enum Reduction { kNone = 0, kMean = 1, kSum = 2 };

// Whether losses are float64: those of float64 logits are, all others are float32.
inline bool is_wide(const Tensor& logits) { return logits.scalar_type() == ScalarType::Double; }

inline ScalarType loss_type(const Tensor& logits) { return is_wide(logits) ? ScalarType::Double : ScalarType::Float; }

// What a batch's losses are multiplied by before they are added.
inline double loss_factor(int64_t reduction, int64_t batch) {
  return reduction == kMean ? 1.0 / static_cast<double>(batch > 0 ? batch : 1) : 1.0;
}

// The upstream gradient: one number, or [B] where losses are not reduced.
inline void check_loss_gradient(const Tensor& grad, const Tensor& logits, const Tensor& logsumexp, int64_t reduction,
                                const char* op) {
  const int64_t batch = logits.size(0);
  check(logsumexp, op, "logsumexp", loss_type(logits), {batch});
  SPURMIX_CHECK(SPURMIX_HERE(grad) && grad.scalar_type() == loss_type(logits), op,
                ": grad has the wrong dtype or device");
  SPURMIX_CHECK(reduction == kNone ? grad.dim() == 1 && grad.size(0) == batch : grad.numel() == 1, op,
                ": grad has the wrong shape");
}

// Whether group is bool [B, G] membership; else it is int64 [B].
inline bool check_counts(const Tensor& label, const Tensor& group, const Tensor& counts, int64_t batch,
                         const char* op) {
  check(label, op, "label", ScalarType::Long, {batch});
  SPURMIX_CHECK(counts.dim() == 2, op, ": counts must be [G, 2]");
  const int64_t groups = counts.size(0);
  check(counts, op, "counts", ScalarType::Long, {groups, 2});
  const bool membership = group.scalar_type() == ScalarType::Bool;
  if (membership) {
    check(group, op, "group", ScalarType::Bool, {batch, groups});
  } else {
    check(group, op, "group", ScalarType::Long, {batch});
  }
  return membership;
}

}  // namespace spurmix

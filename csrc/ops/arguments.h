// Arguments of the operators, as the schemas in spurmix/ops/schema.py group them, and their checks.
#pragma once

#include <cmath>
#include <cstdint>

#include "../draw.h"
#include "tensors.h"

namespace spurmix {

// ---- draw

// Samples of a sequence, starting at `start`, or at `start` + `counter`.
struct SequenceArguments {
  const Tensor &tables, &members;
  int64_t seed, start;
  const OptionalTensor& counter;

  void check(int64_t count, const char* op) const;
};

inline void check_sequence(int64_t seed, int64_t start, int64_t count, const char* op) {
  SPURMIX_CHECK(seed >= 0, op, ": seed must be in [0, 2^63), got ", seed);
  SPURMIX_CHECK(start >= 0 && count >= 0 && (count == 0 || start <= INT64_MAX - (count - 1)), op,
                ": start and count must give samples in [0, 2^63), got start=", start, ", count=", count);
}

inline void SequenceArguments::check(int64_t count, const char* op) const {
  spurmix::check(tables, op, "tables", ScalarType::Long, {tables.numel()});
  SPURMIX_CHECK(on_device(members) && members.is_contiguous(), op, ": members must be contiguous and ", kOnDevice);
  const ScalarType type = members.scalar_type();
  SPURMIX_CHECK(members.numel() == 0 || type == ScalarType::Int || type == ScalarType::Long, op,
                ": members must be int32 or int64");
  if (counter.has_value()) spurmix::check(*counter, op, "counter", ScalarType::Long, {1});
  check_sequence(seed, start, count, op);
}

struct DrawOutputs {
  Tensor index, partner, lam, group;  // [B]

  static DrawOutputs empty(const Tensor& like, int64_t count) {
    return {fresh(like, {count}, ScalarType::Long), fresh(like, {count}, ScalarType::Long),
            fresh(like, {count}, ScalarType::Float), fresh(like, {count}, ScalarType::Long)};
  }

  int64_t count() const { return index.numel(); }

  void check(int64_t expected, const char* op) const {
    spurmix::check(index, op, "index", ScalarType::Long, {expected});
    spurmix::check(partner, op, "partner", ScalarType::Long, {expected});
    spurmix::check(lam, op, "lam", ScalarType::Float, {expected});
    spurmix::check(group, op, "group", ScalarType::Long, {expected});
  }
};

// ---- images

// Images uint8 [N, H, W, C], each contiguous, and their normalization by channel. The images may be in pinned host
// memory, so the device code checks their device.
struct ImageArguments {
  const Tensor &images, &mean, &std;

  void check(const char* op) const {
    SPURMIX_CHECK(images.scalar_type() == ScalarType::Byte && images.dim() == 4, op,
                  ": images must be uint8 [N, H, W, C]");
    const int64_t h = images.size(1), w = images.size(2), c = images.size(3);
    SPURMIX_CHECK(h > 0 && w > 0 && c > 0, op, ": height, width and channels of images must be positive");
    SPURMIX_CHECK(
        (c == 1 || images.stride(3) == 1) && (w == 1 || images.stride(2) == c) && (h == 1 || images.stride(1) == w * c),
        op, ": each image must be contiguous [H, W, C]");
    spurmix::check(mean, op, "mean", ScalarType::Float, {c});
    spurmix::check(std, op, "std", ScalarType::Float, {c});
  }

  // `out` is [batch, C, h, w]; its size is that of the images unless they are cropped.
  void check_output(const Tensor& out, int64_t batch, bool crops, const char* op) const {
    SPURMIX_CHECK(on_device(out) && out.dim() == 4, op, ": out must be [B, C, h, w] ", kOnDevice);
    SPURMIX_CHECK(out.size(0) == batch && out.size(1) == images.size(3), op, ": out must have shape [", batch, ", ",
                  images.size(3), ", h, w]");
    SPURMIX_CHECK(out.size(2) > 0 && out.size(3) > 0, op, ": height and width of out must be positive");
    SPURMIX_CHECK(format_of(out, op, "out") != Format::f64, op, ": out must be float32, float16 or bfloat16");
    SPURMIX_CHECK(batch == 0 || crops || (out.size(2) == images.size(1) && out.size(3) == images.size(2)), op,
                  ": without boxes, out must have the height and width of images");
  }
};

// Whether `out` [B, C, h, w] is channels last. Raises an error if it is neither that nor contiguous.
inline bool is_channels_last(const Tensor& out, const char* op) {
  if (out.is_contiguous()) return false;
  const int64_t c = out.size(1), h = out.size(2), w = out.size(3);
  const int64_t dense[4] = {c * h * w, 1, w * c, c};
  for (int k = 0; k < 4; ++k) {
    SPURMIX_CHECK(out.size(k) <= 1 || out.stride(k) == dense[k], op, ": out must be contiguous or channels_last");
  }
  return true;
}

// The examples that are mixed: rows `index` and `partner` with the weights lam and 1 - lam.
struct PairArguments {
  const Tensor &index, &partner, &lam;

  int64_t batch() const { return index.numel(); }

  void check(const char* op) const {
    spurmix::check(index, op, "index", ScalarType::Long, {batch()});
    spurmix::check(partner, op, "partner", ScalarType::Long, {batch()});
    spurmix::check(lam, op, "lam", ScalarType::Float, {batch()});
  }
};

// Crops and flips of both images of a pair.
struct CropArguments {
  const OptionalTensor &boxes, &flips;

  void check(int64_t batch, const char* op) const {
    if (boxes.has_value()) spurmix::check(*boxes, op, "boxes", ScalarType::Float, {batch, 2, 4});
    if (!flips.has_value()) return;
    const ScalarType type = flips->scalar_type();
    SPURMIX_CHECK(type == ScalarType::Byte || type == ScalarType::Bool, op, ": flips must be uint8 or bool");
    spurmix::check(*flips, op, "flips", type, {batch, 2});
  }

  // Copies the pointers into the arguments of a kernel.
  template <class Mix>
  void set(Mix* m) const {
    m->boxes = reinterpret_cast<const Box*>(data<float>(boxes));
    if (flips.has_value()) m->flips = static_cast<const uint8_t*>(flips->const_data_ptr());
  }
};

inline Crop crop_of(bool crop, double scale_min, double scale_max, double ratio_min, double ratio_max, bool flip) {
  return {crop,
          static_cast<float>(scale_min),
          static_cast<float>(scale_max),
          static_cast<float>(std::log(ratio_min)),
          static_cast<float>(std::log(ratio_max)),
          flip};
}

struct BatchOutputs {
  Tensor input;                 // [B, C, h, w]
  Tensor label, partner_label;  // [B]
  DrawOutputs drawn;
};

inline void check_labels(const Tensor& labels, int64_t total, const char* op) {
  SPURMIX_CHECK(on_device(labels) && labels.dim() == 1 && labels.numel() == total && labels.is_contiguous(), op,
                ": labels must be contiguous [N] ", kOnDevice);
}

// ---- labels and the loss

// Labels of both examples, int64 [B], and the weight lam of the first.
struct LabelArguments {
  const Tensor &label, &partner_label, &lam;

  int64_t batch() const { return label.numel(); }

  void check(int64_t batch, const char* op) const {
    spurmix::check(label, op, "label", ScalarType::Long, {batch});
    spurmix::check(partner_label, op, "partner_label", ScalarType::Long, {batch});
    spurmix::check(lam, op, "lam", ScalarType::Float, {batch});
  }
};

inline void check_logits(const Tensor& logits, const char* op) {
  check_rows(logits, op, "logits", "[B, C]");
  SPURMIX_CHECK(logits.size(1) >= 1, op, ": logits must have at least one class");
}

enum Reduction { kNone = 0, kMean = 1, kSum = 2 };

struct LossArguments {
  const Tensor& logits;  // [B, C]
  LabelArguments labels;
  int64_t reduction;
  double label_smoothing;

  int64_t batch() const { return logits.size(0); }

  // Losses of float64 logits are float64, all others float32.
  ScalarType type() const { return wide_type(logits); }

  // Factor of each loss before they are added.
  double factor() const { return reduction == kMean ? 1.0 / static_cast<double>(batch() > 0 ? batch() : 1) : 1.0; }

  // One loss per sample, or one number.
  Tensor empty_loss() const {
    return reduction == kNone ? fresh(logits, {batch()}, type()) : fresh(logits, {}, type());
  }

  void check(const char* op) const {
    check_logits(logits, op);
    labels.check(batch(), op);
  }

  // `grad` is the gradient of the loss: one number, or [B] if losses are not reduced.
  void check_gradient(const Tensor& grad, const Tensor& logsumexp, const char* op) const {
    spurmix::check(logsumexp, op, "logsumexp", type(), {batch()});
    SPURMIX_CHECK(on_device(grad) && grad.scalar_type() == type(), op, ": grad has the wrong dtype or device");
    SPURMIX_CHECK(reduction == kNone ? grad.dim() == 1 && grad.size(0) == batch() : grad.numel() == 1, op,
                  ": grad has the wrong shape");
  }
};

struct CountArguments {
  const Tensor &logits, &label;
  const Tensor& group;   // int64 [B], or bool [B, G]: the groups that each sample is a member of
  const Tensor& counts;  // [G, 2]: correct, all

  bool membership() const { return group.scalar_type() == ScalarType::Bool; }

  void check(const char* op) const {
    check_logits(logits, op);
    const int64_t batch = logits.size(0);
    spurmix::check(label, op, "label", ScalarType::Long, {batch});
    SPURMIX_CHECK(counts.dim() == 2, op, ": counts must be [G, 2]");
    const int64_t groups = counts.size(0);
    spurmix::check(counts, op, "counts", ScalarType::Long, {groups, 2});
    if (membership()) {
      spurmix::check(group, op, "group", ScalarType::Bool, {batch, groups});
    } else {
      spurmix::check(group, op, "group", ScalarType::Long, {batch});
    }
  }
};

// ---- token embeddings

// Token ids [B, S] of both examples, lam [B], and masks bool [B, S]. The device checks the range of the ids.
struct TokenArguments {
  const Tensor &ids, &partner_ids, &lam;
  const OptionalTensor &mask, &partner_mask;

  int64_t batch() const { return ids.size(0); }
  int64_t length() const { return ids.size(1); }

  void check(const char* op) const {
    SPURMIX_CHECK(ids.dim() == 2, op, ": ids must be [B, S]");
    spurmix::check(ids, op, "ids", ScalarType::Long, {batch(), length()});
    spurmix::check(partner_ids, op, "partner_ids", ScalarType::Long, {batch(), length()});
    spurmix::check(lam, op, "lam", ScalarType::Float, {batch()});
    if (mask.has_value()) spurmix::check(*mask, op, "mask", ScalarType::Bool, {batch(), length()});
    if (partner_mask.has_value())
      spurmix::check(*partner_mask, op, "partner_mask", ScalarType::Bool, {batch(), length()});
  }

  // `grad` [B, S, D] is the gradient of the mixed embeddings.
  void check_gradient(const Tensor& grad, const char* op) const {
    SPURMIX_CHECK(on_device(grad) && grad.dim() == 3, op, ": grad must be [B, S, D] ", kOnDevice);
    SPURMIX_CHECK(ids.dim() == 2, op, ": ids must be [B, S]");
    spurmix::check(grad, op, "grad", grad.scalar_type(), {batch(), length(), grad.size(2)});
  }
};

// Tables and tokens of BERT's embedding block. All tables have the dtype of `weight`.
struct BertArguments {
  const Tensor &weight, &position_weight;  // [V, D], [P, D]
  const OptionalTensor& type_weight;       // [T, D]
  const Tensor& norm_weight;               // [D]
  TokenArguments tokens;
  const Tensor& position_ids;            // [B, S]
  const OptionalTensor& token_type_ids;  // [B, S]

  int64_t columns() const { return weight.size(1); }
  int64_t types() const { return type_weight.has_value() ? type_weight->size(0) : 0; }

  void check(const char* op) const {
    check_rows(weight, op, "weight", "[V, D]");
    tokens.check(op);
    const ScalarType type = weight.scalar_type();
    const int64_t batch = tokens.batch(), length = tokens.length();
    SPURMIX_CHECK(columns() >= 1, op, ": weight must have at least one column");
    SPURMIX_CHECK(position_weight.dim() == 2, op, ": position_weight must be [P, D]");
    spurmix::check(position_weight, op, "position_weight", type, {position_weight.size(0), columns()});
    spurmix::check(position_ids, op, "position_ids", ScalarType::Long, {batch, length});
    if (type_weight.has_value()) {
      SPURMIX_CHECK(type_weight->dim() == 2 && types() >= 1, op, ": type_weight must be [T, D] with T >= 1");
      spurmix::check(*type_weight, op, "type_weight", type, {types(), columns()});
      if (token_type_ids.has_value()) {
        spurmix::check(*token_type_ids, op, "token_type_ids", ScalarType::Long, {batch, length});
      }
    }
    spurmix::check(norm_weight, op, "norm_weight", type, {columns()});
  }

  // Copies the pointers, all but those of the words, into the arguments of a kernel.
  template <class Bert>
  void set(Bert* m) const {
    m->position_weight = position_weight.const_data_ptr();
    m->position_ids = data<int64_t>(position_ids);
    if (type_weight.has_value()) {
      m->type_weight = type_weight->const_data_ptr();
      m->token_type_ids = data<int64_t>(token_type_ids);
    }
    m->norm_weight = norm_weight.const_data_ptr();
  }
};

}  // namespace spurmix

// The operators mix_images and mix_image_batch, and their _out forms.
#include "device.h"

namespace spurmix {
namespace {

void run_mix_images(const ImageArguments& images, const PairArguments& pairs, const CropArguments& crops,
                    const Tensor& out, const char* op) {
  images.check(op);
  pairs.check(op);
  crops.check(pairs.batch(), op);
  images.check_output(out, pairs.batch(), crops.boxes.has_value(), op);
  device::mix_images(images, pairs, crops, out, op);
}

void mix_images_out(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                    const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                    Tensor out) {
  const char* op = "mix_images_out";
  check_disjoint({{out, "out"}},
                 {{images, "images"},
                  {index, "index"},
                  {partner, "partner"},
                  {lam, "lam"},
                  {mean, "mean"},
                  {std, "std"},
                  {boxes, "boxes"},
                  {flips, "flips"}},
                 op);
  run_mix_images({images, mean, std}, {index, partner, lam}, {boxes, flips}, out, op);
}

Tensor mix_images(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                  const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                  int64_t height, int64_t width, ScalarType dtype, bool channels_last) {
  SPURMIX_CHECK(images.dim() == 4, "mix_images: images must be [N, H, W, C]");
  Tensor out = fresh_images(index, {index.numel(), images.size(3), height, width}, dtype, channels_last);
  run_mix_images({images, mean, std}, {index, partner, lam}, {boxes, flips}, out, "mix_images");
  return out;
}

void run_mix_image_batch(const ImageArguments& images, const Tensor& labels, const SequenceArguments& sequence,
                         const Crop& crop, const BatchOutputs& out, const char* op) {
  const int64_t count = out.label.numel();
  images.check(op);
  sequence.check(count, op);
  check_labels(labels, images.images.size(0), op);
  out.drawn.check(count, op);
  check(out.label, op, "label", ScalarType::Long, {count});
  check(out.partner_label, op, "partner_label", ScalarType::Long, {count});
  if (count > 0) images.check_output(out.input, count, crop.enabled, op);
  device::mix_image_batch(images, labels, sequence, crop, out, op);
}

void mix_image_batch_out(const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members,
                         const Tensor& mean, const Tensor& std, bool crop, double scale_min, double scale_max,
                         double ratio_min, double ratio_max, bool flip, int64_t seed, int64_t start,
                         const OptionalTensor& counter, Tensor input, Tensor label, Tensor partner_label, Tensor lam,
                         Tensor index, Tensor partner, Tensor group) {
  const char* op = "mix_image_batch_out";
  check_disjoint({{input, "input"},
                  {label, "label"},
                  {partner_label, "partner_label"},
                  {lam, "lam"},
                  {index, "index"},
                  {partner, "partner"},
                  {group, "group"}},
                 {{images, "images"},
                  {labels, "labels"},
                  {tables, "tables"},
                  {members, "members"},
                  {mean, "mean"},
                  {std, "std"},
                  {counter, "counter"}},
                 op);
  const BatchOutputs out = {input, label, partner_label, {index, partner, lam, group}};
  run_mix_image_batch({images, mean, std}, labels, {tables, members, seed, start, counter},
                      crop_of(crop, scale_min, scale_max, ratio_min, ratio_max, flip), out, op);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_image_batch(
    const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members, const Tensor& mean,
    const Tensor& std, bool crop, double scale_min, double scale_max, double ratio_min, double ratio_max, bool flip,
    int64_t seed, int64_t start, int64_t count, int64_t height, int64_t width, ScalarType dtype, bool channels_last,
    const OptionalTensor& counter) {
  const char* op = "mix_image_batch";
  SPURMIX_CHECK(images.dim() == 4, op, ": images must be [N, H, W, C]");
  SPURMIX_CHECK(count >= 0, op, ": count must be 0 or more, got ", count);
  const BatchOutputs out = {fresh_images(tables, {count, images.size(3), height, width}, dtype, channels_last),
                            fresh(tables, {count}, ScalarType::Long), fresh(tables, {count}, ScalarType::Long),
                            DrawOutputs::empty(tables, count)};
  run_mix_image_batch({images, mean, std}, labels, {tables, members, seed, start, counter},
                      crop_of(crop, scale_min, scale_max, ratio_min, ratio_max, flip), out, op);
  const DrawOutputs& drawn = out.drawn;
  return {out.input, out.label, out.partner_label, drawn.lam, drawn.index, drawn.partner, drawn.group};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("mix_images", TORCH_BOX(&mix_images));
  m.impl("mix_images_out", TORCH_BOX(&mix_images_out));
  m.impl("mix_image_batch", TORCH_BOX(&mix_image_batch));
  m.impl("mix_image_batch_out", TORCH_BOX(&mix_image_batch_out));
}

}  // namespace spurmix

// CUDA operators on images, and the draw: argument checks, outputs, launches. The kernels are in kernels/cuda/.
#include "ops_cuda.h"

#include <tuple>

namespace spurmix {
namespace {

// ---- draw

cuda::Sequence sequence(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, int64_t count,
                        const OptionalTensor& counter, const char* op) {
  check(tables, op, "tables", ScalarType::Long, {tables.numel()});
  SPURMIX_CHECK(SPURMIX_HERE(members) && members.is_contiguous(), op, ": members must be contiguous and ",
                SPURMIX_WHERE);
  cuda::Sequence s = {};
  if (members.numel() > 0) {
    const bool narrow = members.scalar_type() == ScalarType::Int;
    SPURMIX_CHECK(narrow || members.scalar_type() == ScalarType::Long, op, ": members must be int32 or int64");
    s.members = members.const_data_ptr();
    s.member_count = members.numel();
    s.member_size = narrow ? 4 : 8;
  }
  if (counter.has_value()) {
    check(*counter, op, "counter", ScalarType::Long, {1});
    s.counter = data<int64_t>(*counter);
  }
  check_sequence(seed, start, count, op);
  s.tables = data<int64_t>(tables);
  s.length = tables.numel();
  s.seed = static_cast<uint64_t>(seed);
  s.start = static_cast<uint64_t>(start);
  return s;
}

cuda::DrawOut draw_outputs(const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& group,
                           int64_t count, const char* op) {
  check_pairs(index, partner, lam, count, op);
  check(group, op, "group", ScalarType::Long, {count});
  return {mutable_data<int64_t>(index), mutable_data<int64_t>(partner), mutable_data<int64_t>(group),
          mutable_data<float>(lam)};
}

void draw_into(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, const OptionalTensor& counter,
               const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& group, const char* op) {
  const int64_t count = index.numel();
  const cuda::DrawOut out = draw_outputs(index, partner, lam, group, count, op);
  const cuda::Sequence s = sequence(tables, members, seed, start, count, counter, op);
  const OnDevice device(tables, op);
  device.launched(cuda::draw(s, count, out, device.flag(), device.stream()));
}

void draw_out(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, const OptionalTensor& counter,
              Tensor index, Tensor partner, Tensor lam, Tensor group) {
  draw_into(tables, members, seed, start, counter, index, partner, lam, group, "draw_out");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> draw(const Tensor& tables, const Tensor& members, int64_t seed,
                                                int64_t start, int64_t count, const OptionalTensor& counter) {
  SPURMIX_CHECK(count >= 0, "draw: count must be 0 or more");
  Tensor index = fresh(tables, {count}, ScalarType::Long), partner = fresh(tables, {count}, ScalarType::Long);
  Tensor lam = fresh(tables, {count}, ScalarType::Float), group = fresh(tables, {count}, ScalarType::Long);
  draw_into(tables, members, seed, start, counter, index, partner, lam, group, "draw");
  return {index, partner, lam, group};
}

// ---- images

// Where kernels reach the images: on the device, or in pinned memory of the host.
const uint8_t* reachable(const Tensor& images, const char* op) {
  if (SPURMIX_HERE(images) || images.numel() == 0) return data<uint8_t>(images);
  cudaPointerAttributes found = {};
  const bool pinned = cudaPointerGetAttributes(&found, images.const_data_ptr()) == cudaSuccess &&
                      found.type == cudaMemoryTypeHost && found.devicePointer != nullptr;
  if (!pinned) cudaGetLastError();  // a refused pointer is no error of later calls
  SPURMIX_CHECK(pinned, op, ": images must be ", SPURMIX_WHERE, " or in pinned memory of the host");
  return static_cast<const uint8_t*>(found.devicePointer);
}

cuda::MixImages image_arguments(const Tensor& images, const Tensor& mean, const Tensor& std, const Tensor& out,
                                int64_t batch, bool crops, const char* op) {
  check_images(images, mean, std, op);
  if (batch > 0) check_image_output(images, out, batch, crops, op);
  constexpr int64_t kMost = int64_t{1} << 30;
  SPURMIX_CHECK(images.size(1) * images.size(2) < kMost / images.size(3), op, ": images must be below 2^30 bytes each");
  SPURMIX_CHECK(batch == 0 || (out.size(2) < kMost / out.size(3)), op, ": out must be below 2^30 pixels an image");
  cuda::MixImages m = {};
  m.images = reachable(images, op);
  m.image_stride = images.stride(0);
  m.total = images.size(0);
  m.height = static_cast<int32_t>(images.size(1));
  m.width = static_cast<int32_t>(images.size(2));
  m.channels = static_cast<int32_t>(images.size(3));
  m.mean = data<float>(mean);
  m.std = data<float>(std);
  m.batch = batch;
  if (batch == 0) return m;
  m.out_height = static_cast<int32_t>(out.size(2));
  m.out_width = static_cast<int32_t>(out.size(3));
  m.format = format_of(out.scalar_type(), op, "out");
  m.channels_last = is_channels_last(out, op);
  m.out = out.mutable_data_ptr();
  return m;
}

void mix_images_into(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                     const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                     const Tensor& out, const char* op) {
  const int64_t batch = index.numel();
  const OnDevice device(index, op);
  cuda::MixImages m = image_arguments(images, mean, std, out, batch, boxes.has_value(), op);
  check_pairs(index, partner, lam, batch, op);
  check_crops(boxes, flips, batch, op);
  m.index = data<int64_t>(index);
  m.partner = data<int64_t>(partner);
  m.lam = data<float>(lam);
  if (boxes.has_value()) m.boxes = reinterpret_cast<const Box*>(data<float>(*boxes));
  if (flips.has_value()) m.flips = data<uint8_t>(*flips);
  m.flag = device.flag();
  device.launched(cuda::mix_images(m, device.stream()));
}

void mix_images_out(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                    const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                    Tensor out) {
  mix_images_into(images, index, partner, lam, mean, std, boxes, flips, out, "mix_images_out");
}

Tensor mix_images(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                  const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                  int64_t height, int64_t width, ScalarType dtype, bool channels_last) {
  SPURMIX_CHECK(images.dim() == 4, "mix_images: images must be [N, H, W, C]");
  Tensor out = fresh_images(index, {index.numel(), images.size(3), height, width}, dtype, channels_last);
  mix_images_into(images, index, partner, lam, mean, std, boxes, flips, out, "mix_images");
  return out;
}

struct BatchOut {
  Tensor input, label, partner_label, lam, index, partner, group;
};

cuda::Labels labels_of(const Tensor& labels, int64_t total, const BatchOut& out, int64_t count, const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(labels) && labels.dim() == 1 && labels.numel() == total && labels.is_contiguous(), op,
                ": labels must be contiguous [N] ", SPURMIX_WHERE);
  check(out.label, op, "label", ScalarType::Long, {count});
  check(out.partner_label, op, "partner_label", ScalarType::Long, {count});
  cuda::Labels l = {labels.const_data_ptr(), 0, true, mutable_data<int64_t>(out.label),
                    mutable_data<int64_t>(out.partner_label)};
  switch (labels.scalar_type()) {
    case ScalarType::Byte: l.size = 1, l.is_signed = false; break;
    case ScalarType::Char: l.size = 1; break;
    case ScalarType::Short: l.size = 2; break;
    case ScalarType::Int: l.size = 4; break;
    case ScalarType::Long: l.size = 8; break;
    default: SPURMIX_CHECK(false, op, ": labels must be uint8, int8, int16, int32 or int64");
  }
  return l;
}

void mix_image_batch_into(const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members,
                          const Tensor& mean, const Tensor& std, const Crop& crop, int64_t seed, int64_t start,
                          const OptionalTensor& counter, const BatchOut& out, const char* op) {
  const int64_t count = out.label.numel();
  const OnDevice device(tables, op);
  cuda::MixImages m = image_arguments(images, mean, std, out.input, count, crop.enabled, op);
  m.sequence = sequence(tables, members, seed, start, count, counter, op);
  m.crop = crop;
  m.labels = labels_of(labels, m.total, out, count, op);
  m.drawn = draw_outputs(out.index, out.partner, out.lam, out.group, count, op);
  m.flag = device.flag();
  device.launched(cuda::mix_image_batch(m, device.stream()));
}

void mix_image_batch_out(const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members,
                         const Tensor& mean, const Tensor& std, bool crop, double scale_min, double scale_max,
                         double ratio_min, double ratio_max, bool flip, int64_t seed, int64_t start,
                         const OptionalTensor& counter, Tensor input, Tensor label, Tensor partner_label, Tensor lam,
                         Tensor index, Tensor partner, Tensor group) {
  const Crop parameters = crop_of(crop, scale_min, scale_max, ratio_min, ratio_max, flip);
  const BatchOut out = {input, label, partner_label, lam, index, partner, group};
  mix_image_batch_into(images, labels, tables, members, mean, std, parameters, seed, start, counter, out,
                       "mix_image_batch_out");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_image_batch(
    const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members, const Tensor& mean,
    const Tensor& std, bool crop, double scale_min, double scale_max, double ratio_min, double ratio_max, bool flip,
    int64_t seed, int64_t start, int64_t count, int64_t height, int64_t width, ScalarType dtype, bool channels_last,
    const OptionalTensor& counter) {
  SPURMIX_CHECK(images.dim() == 4, "mix_image_batch: images must be [N, H, W, C]");
  SPURMIX_CHECK(count >= 0, "mix_image_batch: count must be 0 or more");
  const Crop parameters = crop_of(crop, scale_min, scale_max, ratio_min, ratio_max, flip);
  const auto whole = [&] { return fresh(tables, {count}, ScalarType::Long); };
  const BatchOut out = {fresh_images(tables, {count, images.size(3), height, width}, dtype, channels_last),
                        whole(),
                        whole(),
                        fresh(tables, {count}, ScalarType::Float),
                        whole(),
                        whole(),
                        whole()};
  mix_image_batch_into(images, labels, tables, members, mean, std, parameters, seed, start, counter, out,
                       "mix_image_batch");
  return {out.input, out.label, out.partner_label, out.lam, out.index, out.partner, out.group};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("draw", TORCH_BOX(&draw));
  m.impl("draw_out", TORCH_BOX(&draw_out));
  m.impl("mix_images", TORCH_BOX(&mix_images));
  m.impl("mix_images_out", TORCH_BOX(&mix_images_out));
  m.impl("mix_image_batch", TORCH_BOX(&mix_image_batch));
  m.impl("mix_image_batch_out", TORCH_BOX(&mix_image_batch_out));
}

}  // namespace spurmix

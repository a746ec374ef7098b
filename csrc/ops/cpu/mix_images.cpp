#include <cmath>
#include <vector>

#include "device.h"

namespace spurmix {
namespace {

// spurmix/ops/reference/checks.py has the same limits and the same message.
void check_normalization(const char* name, float value, int64_t channel, float low, float high, const char* range,
                         const char* op) {
  SPURMIX_CHECK(value >= low && value <= high, op, ": ", name, "[", channel, "] = ", value, " must be in ", range,
                ", because pixels are scaled to [0, 1]; divide values for pixels from 0 to 255 by 255");
}

// The kernel's arguments that do not depend on the pairs. `out` may be of any shape if there are no samples.
cpu::MixImages image_arguments(const ImageArguments& args, const Tensor& out, int64_t batch, const char* op) {
  const Tensor& images = args.images;
  SPURMIX_CHECK(images.is_cpu(), op, ": images must be on the CPU");
  cpu::MixImages m = {};
  m.images = data<uint8_t>(images);
  m.image_stride = images.stride(0);
  m.height = images.size(1);
  m.width = images.size(2);
  m.channels = images.size(3);
  m.mean = data<float>(args.mean);
  m.std = data<float>(args.std);
  for (int64_t c = 0; c < m.channels; ++c) {
    check_normalization("mean", m.mean[c], c, 0.0f, 1.0f, "[0, 1]", op);
    check_normalization("std", m.std[c], c, 0.001f, 2.0f, "[0.001, 2]", op);
  }
  if (batch == 0) return m;
  m.out_height = out.size(2);
  m.out_width = out.size(3);
  m.format = format_of(out, op, "out");
  m.channels_last = is_channels_last(out, op);
  m.out = out.mutable_data_ptr();
  return m;
}

void check_boxes(const Box* boxes, int64_t batch, const char* op) {
  for (int64_t i = 0; boxes != nullptr && i < 2 * batch; ++i) {
    const Box& b = boxes[i];
    const bool nan = std::isnan(b.top) || std::isnan(b.left) || std::isnan(b.height) || std::isnan(b.width);
    SPURMIX_CHECK(!nan, op, ": boxes[", i / 2, ", ", i % 2, "] must not be NaN");
  }
}

void run(cpu::MixImages m, int64_t batch) {
  if (batch == 0) return;
  const int64_t threads = torch::stable::get_num_threads(), values = m.channels * m.out_height * m.out_width;
  // A small batch is split into parts of images, so that one image uses all threads.
  m.parts = batch >= 8 * threads ? 1 : std::min<int64_t>(m.out_height, 4 * threads);
  m.stream = batch * values * (m.format == Format::f32 ? 4 : 2) > cpu::kStreamThreshold;
  const int64_t grain = std::max<int64_t>(1, 16384 * m.parts / values);
  parallel_for(0, batch * m.parts, grain, [&](int64_t begin, int64_t end) { cpu::mix_images(m, begin, end); });
}

template <class T>
void take(const Tensor& labels, const int64_t* index, int64_t count, int64_t* out) {
  const T* values = data<T>(labels);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int64_t>(values[index[i]]);
}

void take_labels(const Tensor& labels, const int64_t* index, int64_t count, int64_t* out, const char* op) {
  switch (labels.scalar_type()) {
    case ScalarType::Byte: return take<uint8_t>(labels, index, count, out);
    case ScalarType::Char: return take<int8_t>(labels, index, count, out);
    case ScalarType::Short: return take<int16_t>(labels, index, count, out);
    case ScalarType::Int: return take<int32_t>(labels, index, count, out);
    case ScalarType::Long: return take<int64_t>(labels, index, count, out);
    default: SPURMIX_CHECK(false, op, ": labels must be uint8, int8, int16, int32 or int64");
  }
}

}  // namespace

void device::mix_images(const ImageArguments& images, const PairArguments& pairs, const CropArguments& crops,
                        const Tensor& out, const char* op) {
  cpu::MixImages m = image_arguments(images, out, pairs.batch(), op);
  check_range(pairs, images.images.size(0), op);
  m.index = data<int64_t>(pairs.index);
  m.partner = data<int64_t>(pairs.partner);
  m.lam = data<float>(pairs.lam);
  crops.set(&m);
  check_boxes(m.boxes, pairs.batch(), op);
  run(m, pairs.batch());
}

void device::mix_image_batch(const ImageArguments& images, const Tensor& labels, const SequenceArguments& sequence,
                             const Crop& crop, const BatchOutputs& out, const char* op) {
  const DrawOutputs& drawn = out.drawn;
  const int64_t count = drawn.count(), total = images.images.size(0);
  cpu::MixImages m = image_arguments(images, out.input, count, op);
  const Sequence s = checked_sequence(sequence, count, op);
  SPURMIX_CHECK(total == s.tables.num_examples, op, ": ", total, " images for tables of ", s.tables.num_examples,
                " examples");

  std::vector<uint32_t> flip_bits(crop.flip ? count : 0);
  std::vector<Box> boxes(crop.enabled ? 2 * count : 0);
  std::vector<uint8_t> flips(crop.flip ? 2 * count : 0);
  draw_samples(s, drawn, crop.flip ? flip_bits.data() : nullptr, op);
  m.index = data<int64_t>(drawn.index);
  m.partner = data<int64_t>(drawn.partner);
  m.lam = data<float>(drawn.lam);
  check_range(m.index, count, total, op, "drawn index");
  check_range(m.partner, count, total, op, "drawn partner");
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t n = s.start + static_cast<uint64_t>(i);
    for (uint32_t side = 0; side < 2; ++side) {
      if (crop.enabled) boxes[2 * i + side] = crop_box(sample_words(s.seed, n, 2 + side), crop, m.height, m.width);
      if (crop.flip) flips[2 * i + side] = (flip_bits[i] >> side) & 1;
    }
  }
  m.boxes = crop.enabled ? boxes.data() : nullptr;
  m.flips = crop.flip ? flips.data() : nullptr;
  run(m, count);

  const bool keep_labels = s.tables.flags & kFlagKeepLabels;
  take_labels(labels, m.index, count, mutable_data<int64_t>(out.label), op);
  take_labels(labels, keep_labels ? m.index : m.partner, count, mutable_data<int64_t>(out.partner_label), op);
}

}  // namespace spurmix

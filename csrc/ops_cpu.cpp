// CPU operators on images, and the draw: argument checks, outputs, threads. The arithmetic is in cpu/.
#include "ops_cpu.h"

#include <tuple>

namespace spurmix {
namespace {

// ---- draw

struct Sequence {
  Tables tables;
  uint64_t seed, start;
};

Sequence sequence(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, int64_t count,
                  const OptionalTensor& counter, const char* op) {
  SPURMIX_CHECK(
      tables.is_cpu() && tables.scalar_type() == ScalarType::Long && tables.dim() == 1 && tables.is_contiguous(), op,
      ": tables must be a contiguous int64 tensor on the CPU");
  Sequence s;
  const char* problem = view_tables(data<int64_t>(tables), tables.numel(), &s.tables);
  SPURMIX_CHECK(problem == nullptr, op, ": tables: ", problem == nullptr ? "" : problem);
  SPURMIX_CHECK(members.is_cpu() && members.is_contiguous(), op, ": members must be contiguous and on the CPU");
  if (members.numel() > 0) {
    SPURMIX_CHECK(members.numel() == s.tables.num_examples, op, ": members has ", members.numel(),
                  " entries for tables of ", s.tables.num_examples, " examples");
    if (members.scalar_type() == ScalarType::Int) {
      s.tables.members32 = data<int32_t>(members);
    } else {
      SPURMIX_CHECK(members.scalar_type() == ScalarType::Long, op, ": members must be int32 or int64");
      s.tables.members64 = data<int64_t>(members);
    }
  }
  if (counter.has_value()) {
    check(*counter, op, "counter", ScalarType::Long, {1});
    const int64_t offset = *data<int64_t>(*counter);
    SPURMIX_CHECK(offset >= 0 && offset <= INT64_MAX - start, op, ": counter must lie in [0, 2^63 - start)");
    start += offset;
  }
  check_sequence(seed, start, count, op);
  s.seed = static_cast<uint64_t>(seed);
  s.start = static_cast<uint64_t>(start);
  return s;
}

struct DrawOut {
  int64_t *index, *partner, *group;
  float* lam;
};

void run_draw(const Sequence& s, int64_t count, const DrawOut& out, uint32_t* flip_bits) {
  const cpu::Draw args = {s.tables, s.seed, s.start, out.index, out.partner, out.group, out.lam, flip_bits};
  parallel_for(0, count, 512, [&](int64_t begin, int64_t end) { cpu::draw(args, begin, end); });
}

DrawOut draw_outputs(const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& group, int64_t count,
                     const char* op) {
  check(index, op, "index", ScalarType::Long, {count});
  check(partner, op, "partner", ScalarType::Long, {count});
  check(lam, op, "lam", ScalarType::Float, {count});
  check(group, op, "group", ScalarType::Long, {count});
  return {mutable_data<int64_t>(index), mutable_data<int64_t>(partner), mutable_data<int64_t>(group),
          mutable_data<float>(lam)};
}

void draw_out(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, const OptionalTensor& counter,
              Tensor index, Tensor partner, Tensor lam, Tensor group) {
  const int64_t count = index.numel();
  const DrawOut out = draw_outputs(index, partner, lam, group, count, "draw_out");
  run_draw(sequence(tables, members, seed, start, count, counter, "draw_out"), count, out, nullptr);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> draw(const Tensor& tables, const Tensor& members, int64_t seed,
                                                int64_t start, int64_t count, const OptionalTensor& counter) {
  const Sequence s = sequence(tables, members, seed, start, count, counter, "draw");
  Tensor index = fresh(tables, {count}, ScalarType::Long), partner = fresh(tables, {count}, ScalarType::Long);
  Tensor lam = fresh(tables, {count}, ScalarType::Float), group = fresh(tables, {count}, ScalarType::Long);
  run_draw(s, count, draw_outputs(index, partner, lam, group, count, "draw"), nullptr);
  return {index, partner, lam, group};
}

// ---- images

// The image store and its normalisation, checked; the fields of one mix that do not depend on the batch.
cpu::MixImages image_arguments(const Tensor& images, const Tensor& mean, const Tensor& std, const char* op) {
  SPURMIX_CHECK(images.is_cpu(), op, ": images must be on the CPU");
  check_images(images, mean, std, op);
  cpu::MixImages m = {};
  m.images = data<uint8_t>(images);
  m.image_stride = images.stride(0);
  m.height = images.size(1);
  m.width = images.size(2);
  m.channels = images.size(3);
  m.mean = data<float>(mean);
  m.std = data<float>(std);
  return m;
}

void image_output(cpu::MixImages* m, const Tensor& images, const Tensor& out, int64_t batch, bool crops,
                  const char* op) {
  check_image_output(images, out, batch, crops, op);
  m->out_height = out.size(2);
  m->out_width = out.size(3);
  m->format = format_of(out.scalar_type(), op, "out");
  m->channels_last = is_channels_last(out, op);
  m->out = out.mutable_data_ptr();
}

void run_mix_images(cpu::MixImages m, int64_t batch) {
  const int64_t threads = torch::stable::get_num_threads(), values = m.channels * m.out_height * m.out_width;
  // Few samples are cut into parts, so that a single one keeps all threads busy too.
  m.parts = batch >= 8 * threads ? 1 : std::min<int64_t>(m.out_height, 4 * threads);
  m.stream = batch * values * (m.format == cpu::Format::f32 ? 4 : 2) > cpu::kStreamThreshold;
  const int64_t grain = std::max<int64_t>(1, 16384 * m.parts / values);
  parallel_for(0, batch * m.parts, grain, [&](int64_t begin, int64_t end) { cpu::mix_images(m, begin, end); });
}

void mix_images_into(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                     const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                     const Tensor& out, const char* op) {
  cpu::MixImages m = image_arguments(images, mean, std, op);
  const int64_t batch = index.numel(), total = images.size(0);
  check_pairs(index, partner, lam, batch, op);
  check_crops(boxes, flips, batch, op);
  if (boxes.has_value()) m.boxes = reinterpret_cast<const Box*>(data<float>(*boxes));
  if (flips.has_value()) m.flips = data<uint8_t>(*flips);
  image_output(&m, images, out, batch, boxes.has_value(), op);
  m.index = data<int64_t>(index);
  m.partner = data<int64_t>(partner);
  m.lam = data<float>(lam);
  check_range(m.index, batch, total, op, "index");
  check_range(m.partner, batch, total, op, "partner");
  run_mix_images(m, batch);
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
  Tensor out = fresh_images(images, {index.numel(), images.size(3), height, width}, dtype, channels_last);
  mix_images_into(images, index, partner, lam, mean, std, boxes, flips, out, "mix_images");
  return out;
}

struct BatchOut {
  Tensor input, label, partner_label, lam, index, partner, group;
};

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

void mix_image_batch_into(const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members,
                          const Tensor& mean, const Tensor& std, const Crop& crop, int64_t seed, int64_t start,
                          const OptionalTensor& counter, const BatchOut& out, const char* op) {
  const int64_t count = out.label.numel();
  cpu::MixImages m = image_arguments(images, mean, std, op);
  const Sequence s = sequence(tables, members, seed, start, count, counter, op);
  const int64_t total = images.size(0);
  SPURMIX_CHECK(total == s.tables.num_examples, op, ": ", total, " images for tables of ", s.tables.num_examples,
                " examples");
  SPURMIX_CHECK(labels.is_cpu() && labels.dim() == 1 && labels.numel() == total && labels.is_contiguous(), op,
                ": labels must be contiguous [N] on the CPU");
  const DrawOut drawn = draw_outputs(out.index, out.partner, out.lam, out.group, count, op);
  check(out.label, op, "label", ScalarType::Long, {count});
  check(out.partner_label, op, "partner_label", ScalarType::Long, {count});

  std::vector<uint32_t> flip_bits(crop.flip ? count : 0);
  std::vector<Box> boxes(crop.enabled ? 2 * count : 0);
  std::vector<uint8_t> flips(crop.flip ? 2 * count : 0);
  m.boxes = crop.enabled ? boxes.data() : nullptr;
  m.flips = crop.flip ? flips.data() : nullptr;
  if (count > 0) image_output(&m, images, out.input, count, crop.enabled, op);
  if (count == 0) return;

  run_draw(s, count, drawn, crop.flip ? flip_bits.data() : nullptr);
  check_range(drawn.index, count, total, op, "drawn index");
  check_range(drawn.partner, count, total, op, "drawn partner");
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t n = s.start + static_cast<uint64_t>(i);
    for (uint32_t side = 0; side < 2; ++side) {
      if (crop.enabled) boxes[2 * i + side] = crop_box(sample_words(s.seed, n, 2 + side), crop, m.height, m.width);
      if (crop.flip) flips[2 * i + side] = (flip_bits[i] >> side) & 1;
    }
  }
  m.index = drawn.index;
  m.partner = drawn.partner;
  m.lam = drawn.lam;
  run_mix_images(m, count);
  take_labels(labels, drawn.index, count, mutable_data<int64_t>(out.label), op);
  const bool keep = s.tables.flags & kKeepLabels;
  take_labels(labels, keep ? drawn.index : drawn.partner, count, mutable_data<int64_t>(out.partner_label), op);
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
  const auto whole = [&] { return fresh(images, {count}, ScalarType::Long); };
  const BatchOut out = {fresh_images(images, {count, images.size(3), height, width}, dtype, channels_last),
                        whole(),
                        whole(),
                        fresh(images, {count}, ScalarType::Float),
                        whole(),
                        whole(),
                        whole()};
  mix_image_batch_into(images, labels, tables, members, mean, std, parameters, seed, start, counter, out,
                       "mix_image_batch");
  return {out.input, out.label, out.partner_label, out.lam, out.index, out.partner, out.group};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spurmix, CPU, m) {
  m.impl("draw", TORCH_BOX(&draw));
  m.impl("draw_out", TORCH_BOX(&draw_out));
  m.impl("mix_images", TORCH_BOX(&mix_images));
  m.impl("mix_images_out", TORCH_BOX(&mix_images_out));
  m.impl("mix_image_batch", TORCH_BOX(&mix_image_batch));
  m.impl("mix_image_batch_out", TORCH_BOX(&mix_image_batch_out));
}

}  // namespace spurmix

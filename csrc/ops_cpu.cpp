// CPU operators: argument checks, outputs, threads. The schemas stand in spurmix/ops/schema.py; the arithmetic in cpu/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace spurmix {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define CHECK(condition, ...) STD_TORCH_CHECK(condition, "spurmix::", __VA_ARGS__)

void check(const Tensor& t, const char* op, const char* name, ScalarType type, std::vector<int64_t> shape) {
  CHECK(t.is_cpu(), op, ": ", name, " must be on the CPU");
  CHECK(t.scalar_type() == type, op, ": ", name, " has the wrong dtype");
  CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " has the wrong rank ", t.dim());
  for (size_t k = 0; k < shape.size(); ++k) {
    CHECK(t.size(k) == shape[k], op, ": ", name, " has size ", t.size(k), " in dimension ", k, ", expected ", shape[k]);
  }
  CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

cpu::Format format_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
    case ScalarType::Float: return cpu::Format::f32;
    case ScalarType::Half: return cpu::Format::f16;
    case ScalarType::BFloat16: return cpu::Format::bf16;
    case ScalarType::Double: return cpu::Format::f64;
    default: CHECK(false, op, ": ", name, " must be float32, float16, bfloat16 or float64");
  }
  return cpu::Format::f32;
}

void check_range(const int64_t* values, int64_t count, int64_t limit, const char* op, const char* name) {
  const int64_t at = cpu::first_outside(values, count, limit);
  CHECK(at < 0, op, ": ", name, "[", at, "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", limit, ")");
}

Tensor fresh(const Tensor& like, std::vector<int64_t> shape, ScalarType type, bool channels_last = false) {
  const MemoryFormat layout = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, layout);
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
bool is_channels_last(const Tensor& t, const char* op) {
  if (t.is_contiguous()) return false;
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t dense[4] = {c * h * w, 1, w * c, c};
  for (int k = 0; k < 4; ++k) {
    CHECK(t.size(k) <= 1 || t.stride(k) == dense[k], op, ": out must be contiguous or channels_last");
  }
  return true;
}

// ---- draw

struct Sequence {
  Tables tables;
  uint64_t seed, start;
};

Sequence sequence(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, int64_t count,
                  const OptionalTensor& counter, const char* op) {
  CHECK(tables.is_cpu() && tables.scalar_type() == ScalarType::Long && tables.dim() == 1 && tables.is_contiguous(), op,
        ": tables must be a contiguous int64 tensor on the CPU");
  Sequence s;
  const char* problem = view_tables(data<int64_t>(tables), tables.numel(), &s.tables);
  CHECK(problem == nullptr, op, ": tables: ", problem == nullptr ? "" : problem);
  CHECK(members.is_cpu() && members.is_contiguous(), op, ": members must be contiguous and on the CPU");
  if (members.numel() > 0) {
    CHECK(members.numel() == s.tables.num_examples, op, ": members has ", members.numel(), " entries for tables of ",
          s.tables.num_examples, " examples");
    if (members.scalar_type() == ScalarType::Int) {
      s.tables.members32 = data<int32_t>(members);
    } else {
      CHECK(members.scalar_type() == ScalarType::Long, op, ": members must be int32 or int64");
      s.tables.members64 = data<int64_t>(members);
    }
  }
  if (counter.has_value()) {
    check(*counter, op, "counter", ScalarType::Long, {1});
    const int64_t offset = *data<int64_t>(*counter);
    CHECK(offset >= 0 && offset <= INT64_MAX - start, op, ": counter must lie in [0, 2^63 - start)");
    start += offset;
  }
  CHECK(seed >= 0, op, ": seed must lie in [0, 2^63)");
  CHECK(start >= 0 && count >= 0 && (count == 0 || start <= INT64_MAX - (count - 1)), op,
        ": start and count must name samples in [0, 2^63)");
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
  CHECK(images.is_cpu() && images.scalar_type() == ScalarType::Byte && images.dim() == 4, op,
        ": images must be uint8 [N, H, W, C] on the CPU");
  const int64_t h = images.size(1), w = images.size(2), c = images.size(3);
  CHECK(h > 0 && w > 0 && c > 0, op, ": images must have height, width and channels of 1 or more");
  CHECK((c == 1 || images.stride(3) == 1) && (w == 1 || images.stride(2) == c) && (h == 1 || images.stride(1) == w * c),
        op, ": each image must be contiguous [H, W, C]");
  check(mean, op, "mean", ScalarType::Float, {c});
  check(std, op, "std", ScalarType::Float, {c});
  cpu::MixImages m = {};
  m.images = data<uint8_t>(images);
  m.image_stride = images.stride(0);
  m.height = h;
  m.width = w;
  m.channels = c;
  m.mean = data<float>(mean);
  m.std = data<float>(std);
  return m;
}

void image_output(cpu::MixImages* m, const Tensor& out, int64_t batch, const char* op) {
  CHECK(out.is_cpu() && out.dim() == 4, op, ": out must be [B, C, h, w] on the CPU");
  CHECK(out.size(0) == batch && out.size(1) == m->channels, op, ": out must have shape [", batch, ", ", m->channels,
        ", h, w]");
  m->out_height = out.size(2);
  m->out_width = out.size(3);
  CHECK(m->out_height > 0 && m->out_width > 0, op, ": out must have positive height and width");
  m->format = format_of(out.scalar_type(), op, "out");
  CHECK(m->format != cpu::Format::f64, op, ": out must be float32, float16 or bfloat16");
  m->channels_last = is_channels_last(out, op);
  m->out = out.mutable_data_ptr();
  if (m->boxes == nullptr) {
    CHECK(m->out_height == m->height && m->out_width == m->width, op, ": another size than the images' needs boxes");
  }
}

void run_mix_images(const cpu::MixImages& m, int64_t batch) {
  // Blocks of rows, so that one large image keeps all threads busy; small ones go in runs of at least 16 KiB.
  const int64_t items = batch * cpu::row_blocks(m.out_height);
  const int64_t values = m.channels * m.out_width * std::min<int64_t>(m.out_height, 56);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, values));
  parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { cpu::mix_images(m, begin, end); });
}

void mix_images_into(const Tensor& images, const Tensor& index, const Tensor& partner, const Tensor& lam,
                     const Tensor& mean, const Tensor& std, const OptionalTensor& boxes, const OptionalTensor& flips,
                     const Tensor& out, const char* op) {
  cpu::MixImages m = image_arguments(images, mean, std, op);
  const int64_t batch = index.numel(), total = images.size(0);
  check(index, op, "index", ScalarType::Long, {batch});
  check(partner, op, "partner", ScalarType::Long, {batch});
  check(lam, op, "lam", ScalarType::Float, {batch});
  if (boxes.has_value()) {
    check(*boxes, op, "boxes", ScalarType::Float, {batch, 2, 4});
    m.boxes = reinterpret_cast<const Box*>(data<float>(*boxes));
  }
  if (flips.has_value()) {
    const ScalarType type = flips->scalar_type();
    CHECK(type == ScalarType::Byte || type == ScalarType::Bool, op, ": flips must be uint8 or bool");
    check(*flips, op, "flips", type, {batch, 2});
    m.flips = data<uint8_t>(*flips);
  }
  image_output(&m, out, batch, op);
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
  CHECK(images.dim() == 4, "mix_images: images must be [N, H, W, C]");
  Tensor out = fresh(images, {index.numel(), images.size(3), height, width}, dtype, channels_last);
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
    default: CHECK(false, op, ": labels must be uint8, int8, int16, int32 or int64");
  }
}

void mix_image_batch_into(const Tensor& images, const Tensor& labels, const Tensor& tables, const Tensor& members,
                          const Tensor& mean, const Tensor& std, const Crop& crop, int64_t seed, int64_t start,
                          const OptionalTensor& counter, const BatchOut& out, const char* op) {
  const int64_t count = out.label.numel();
  cpu::MixImages m = image_arguments(images, mean, std, op);
  const Sequence s = sequence(tables, members, seed, start, count, counter, op);
  const int64_t total = images.size(0);
  CHECK(total == s.tables.num_examples, op, ": ", total, " images for tables of ", s.tables.num_examples, " examples");
  CHECK(labels.is_cpu() && labels.dim() == 1 && labels.numel() == total && labels.is_contiguous(), op,
        ": labels must be contiguous [N] on the CPU");
  const DrawOut drawn = draw_outputs(out.index, out.partner, out.lam, out.group, count, op);
  check(out.label, op, "label", ScalarType::Long, {count});
  check(out.partner_label, op, "partner_label", ScalarType::Long, {count});

  std::vector<uint32_t> flip_bits(crop.flip ? count : 0);
  std::vector<Box> boxes(crop.enabled ? 2 * count : 0);
  std::vector<uint8_t> flips(crop.flip ? 2 * count : 0);
  m.boxes = crop.enabled ? boxes.data() : nullptr;
  m.flips = crop.flip ? flips.data() : nullptr;
  if (count > 0) image_output(&m, out.input, count, op);
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

Crop crop_of(bool crop, double scale_min, double scale_max, double ratio_min, double ratio_max, bool flip) {
  return {crop,
          static_cast<float>(scale_min),
          static_cast<float>(scale_max),
          static_cast<float>(std::log(ratio_min)),
          static_cast<float>(std::log(ratio_max)),
          flip};
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
  CHECK(images.dim() == 4, "mix_image_batch: images must be [N, H, W, C]");
  CHECK(count >= 0, "mix_image_batch: count must be 0 or more");
  const Crop parameters = crop_of(crop, scale_min, scale_max, ratio_min, ratio_max, flip);
  const auto whole = [&] { return fresh(images, {count}, ScalarType::Long); };
  const BatchOut out = {fresh(images, {count, images.size(3), height, width}, dtype, channels_last),
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

// ---- rows and labels

void mix_rows_into(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& out,
                   const char* op) {
  CHECK(rows.is_cpu() && rows.dim() == 2, op, ": rows must be [N, D] on the CPU");
  CHECK(rows.size(1) <= 1 || rows.stride(1) == 1, op, ": each row must be contiguous");
  const int64_t batch = index.numel(), total = rows.size(0), columns = rows.size(1);
  check(index, op, "index", ScalarType::Long, {batch});
  check(partner, op, "partner", ScalarType::Long, {batch});
  check(lam, op, "lam", ScalarType::Float, {batch});
  check(out, op, "out", out.scalar_type(), {batch, columns});
  check_range(data<int64_t>(index), batch, total, op, "index");
  check_range(data<int64_t>(partner), batch, total, op, "partner");
  const cpu::MixRows m = {rows.const_data_ptr(),
                          rows.stride(0),
                          columns,
                          format_of(rows.scalar_type(), op, "rows"),
                          data<int64_t>(index),
                          data<int64_t>(partner),
                          data<float>(lam),
                          out.mutable_data_ptr(),
                          format_of(out.scalar_type(), op, "out")};
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
  parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) { cpu::mix_rows(m, begin, end); });
}

void mix_rows_out(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, Tensor out) {
  mix_rows_into(rows, index, partner, lam, out, "mix_rows_out");
}

Tensor mix_rows(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, ScalarType dtype) {
  CHECK(rows.dim() == 2, "mix_rows: rows must be [N, D]");
  Tensor out = fresh(rows, {index.numel(), rows.size(1)}, dtype);
  mix_rows_into(rows, index, partner, lam, out, "mix_rows");
  return out;
}

void check_labels(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t batch, int64_t classes,
                  const char* op) {
  check(label, op, "label", ScalarType::Long, {batch});
  check(partner_label, op, "partner_label", ScalarType::Long, {batch});
  check(lam, op, "lam", ScalarType::Float, {batch});
  check_range(data<int64_t>(label), batch, classes, op, "label");
  check_range(data<int64_t>(partner_label), batch, classes, op, "partner_label");
}

void mix_labels_into(const Tensor& label, const Tensor& partner_label, const Tensor& lam, const Tensor& out,
                     const char* op) {
  CHECK(out.dim() == 2, op, ": out must be [B, classes]");
  const int64_t batch = label.numel(), classes = out.size(1);
  check_labels(label, partner_label, lam, batch, classes, op);
  check(out, op, "out", out.scalar_type(), {batch, classes});
  const cpu::MixLabels m = {data<int64_t>(label),   data<int64_t>(partner_label),           data<float>(lam), classes,
                            out.mutable_data_ptr(), format_of(out.scalar_type(), op, "out")};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, classes));
  parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) { cpu::mix_labels(m, begin, end); });
}

void mix_labels_out(const Tensor& label, const Tensor& partner_label, const Tensor& lam, Tensor out) {
  mix_labels_into(label, partner_label, lam, out, "mix_labels_out");
}

Tensor mix_labels(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t num_classes,
                  ScalarType dtype) {
  CHECK(num_classes >= 1, "mix_labels: num_classes must be 1 or more");
  Tensor out = fresh(label, {label.numel(), num_classes}, dtype);
  mix_labels_into(label, partner_label, lam, out, "mix_labels");
  return out;
}

// ---- loss

enum Reduction { kNone = 0, kMean = 1, kSum = 2 };

void check_logits(const Tensor& logits, const char* op) {
  CHECK(logits.is_cpu() && logits.dim() == 2 && logits.size(1) >= 1, op, ": logits must be [B, C] on the CPU");
  CHECK(logits.size(1) == 1 || logits.stride(1) == 1, op, ": each row of logits must be contiguous");
}

int64_t loss_grain(int64_t classes) { return std::max<int64_t>(1, 8192 / classes); }

template <class T>
void reduce(const T* values, int64_t count, int64_t reduction, T* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  *out = static_cast<T>(reduction == kMean ? sum / static_cast<double>(count) : sum);
}

std::tuple<Tensor, Tensor> mixed_cross_entropy(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                               const Tensor& lam, int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy";
  check_logits(logits, op);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  check_labels(label, partner_label, lam, batch, classes, op);
  const cpu::Format format = format_of(logits.scalar_type(), op, "logits");
  const ScalarType wide = format == cpu::Format::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor each = fresh(logits, {batch}, wide), logsumexp = fresh(logits, {batch}, wide);
  const cpu::CrossEntropy m = {logits.const_data_ptr(),
                               logits.stride(0),
                               classes,
                               format,
                               data<int64_t>(label),
                               data<int64_t>(partner_label),
                               data<float>(lam),
                               label_smoothing,
                               each.mutable_data_ptr(),
                               logsumexp.mutable_data_ptr()};
  parallel_for(0, batch, loss_grain(classes), [&](int64_t begin, int64_t end) { cpu::cross_entropy(m, begin, end); });
  if (reduction == kNone) return {each, logsumexp};
  Tensor loss = fresh(logits, {}, wide);
  if (wide == ScalarType::Double) {
    reduce(data<double>(each), batch, reduction, mutable_data<double>(loss));
  } else {
    reduce(data<float>(each), batch, reduction, mutable_data<float>(loss));
  }
  return {loss, logsumexp};
}

Tensor mixed_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& logsumexp,
                                    const Tensor& label, const Tensor& partner_label, const Tensor& lam,
                                    int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_backward";
  check_logits(logits, op);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  check_labels(label, partner_label, lam, batch, classes, op);
  const cpu::Format format = format_of(logits.scalar_type(), op, "logits");
  const ScalarType wide = format == cpu::Format::f64 ? ScalarType::Double : ScalarType::Float;
  check(logsumexp, op, "logsumexp", wide, {batch});
  CHECK(grad.is_cpu() && grad.scalar_type() == wide, op, ": grad has the wrong dtype or device");
  const bool each = reduction == kNone;
  CHECK(each ? grad.dim() == 1 && grad.size(0) == batch : grad.numel() == 1, op, ": grad has the wrong shape");
  Tensor out = fresh(logits, {batch, classes}, logits.scalar_type());
  const cpu::CrossEntropyBackward m = {
      logits.const_data_ptr(),
      logits.stride(0),
      classes,
      format,
      data<int64_t>(label),
      data<int64_t>(partner_label),
      data<float>(lam),
      label_smoothing,
      grad.const_data_ptr(),
      logsumexp.const_data_ptr(),
      each ? grad.stride(0) : 0,
      reduction == kMean ? 1.0 / static_cast<double>(std::max<int64_t>(1, batch)) : 1.0,
      out.mutable_data_ptr()};
  parallel_for(0, batch, loss_grain(classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy_backward(m, begin, end); });
  return out;
}

void group_counts(const Tensor& logits, const Tensor& label, const Tensor& group, Tensor counts) {
  const char* op = "group_counts";
  check_logits(logits, op);
  const int64_t batch = logits.size(0);
  check(label, op, "label", ScalarType::Long, {batch});
  CHECK(counts.dim() == 2, op, ": counts must be [G, 2]");
  const int64_t groups = counts.size(0);
  check(counts, op, "counts", ScalarType::Long, {groups, 2});
  const bool membership = group.scalar_type() == ScalarType::Bool;
  if (membership) {
    check(group, op, "group", ScalarType::Bool, {batch, groups});
  } else {
    check(group, op, "group", ScalarType::Long, {batch});
    const int64_t* g = data<int64_t>(group);
    for (int64_t i = 0; i < batch; ++i) {
      CHECK(g[i] >= -1 && g[i] < groups, op, ": group[", i, "] = ", g[i], " is out of range [-1, ", groups, ")");
    }
  }
  std::vector<int64_t> best(batch);
  const cpu::Argmax m = {logits.const_data_ptr(), logits.stride(0), logits.size(1),
                         format_of(logits.scalar_type(), op, "logits"), best.data()};
  parallel_for(0, batch, loss_grain(m.classes), [&](int64_t begin, int64_t end) { cpu::argmax(m, begin, end); });
  int64_t* total = mutable_data<int64_t>(counts);
  const int64_t* y = data<int64_t>(label);
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t correct = best[i] == y[i];
    const auto add = [&](int64_t g) {
      total[2 * g] += correct;
      total[2 * g + 1] += 1;
    };
    if (!membership) {
      const int64_t g = data<int64_t>(group)[i];
      if (g >= 0) add(g);
      continue;
    }
    const bool* in = data<bool>(group) + i * groups;
    for (int64_t g = 0; g < groups; ++g) {
      if (in[g]) add(g);
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spurmix, CPU, m) {
  m.impl("draw", TORCH_BOX(&draw));
  m.impl("draw_out", TORCH_BOX(&draw_out));
  m.impl("mix_images", TORCH_BOX(&mix_images));
  m.impl("mix_images_out", TORCH_BOX(&mix_images_out));
  m.impl("mix_image_batch", TORCH_BOX(&mix_image_batch));
  m.impl("mix_image_batch_out", TORCH_BOX(&mix_image_batch_out));
  m.impl("mix_rows", TORCH_BOX(&mix_rows));
  m.impl("mix_rows_out", TORCH_BOX(&mix_rows_out));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_labels_out", TORCH_BOX(&mix_labels_out));
  m.impl("mixed_cross_entropy", TORCH_BOX(&mixed_cross_entropy));
  m.impl("mixed_cross_entropy_backward", TORCH_BOX(&mixed_cross_entropy_backward));
  m.impl("group_counts", TORCH_BOX(&group_counts));
}

}  // namespace spurmix

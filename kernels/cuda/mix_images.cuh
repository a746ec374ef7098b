// Device code of mix_images and mix_image_batch: the samples of a block, and the paths that mix their pixels.
#pragma once

#include "draw.cuh"

namespace spurmix::cuda {

// A multiple of the 32 lanes of a warp, and of 3: all vectors of a thread then start with the same of three channels.
constexpr int kThreads = 192;
constexpr int kTapRows = 128;      // output rows whose taps are in shared memory at the same time
constexpr int kBlockSamples = 32;  // samples that a block draws or reads at the same time, one per lane

// A sample in shared memory. Arrays of two have an element for the image of the index and one for that of the partner.
struct Sample {
  int64_t index, partner, group;
  float lam;
  bool valid;  // otherwise the output is NaN and the images are not read
  bool flip[2];
  int64_t box[2][4];  // Q16: top, left, height, width
};

// Shared memory of a block.
struct Shared {
  Tables tables;
  Sample sample[kBlockSamples];
  int64_t cached_words[kCachedWords];
  bool tables_valid;
};

// Vertical tap of an output row.
struct alignas(16) RowTap {
  int32_t upper, lower;  // byte offsets of the two rows in the image
  float f;               // weight of the lower row
};

// Horizontal tap of an output column.
struct ColumnTap {
  int32_t offset;  // byte offset of the left pixel in its row; on Path::crops, never that of the last pixel
  float f;         // weight of the right pixel
};

__device__ __forceinline__ bool is_valid(const MixImages& m, int64_t index, int64_t partner) {
  return index >= 0 && index < m.total && partner >= 0 && partner < m.total;
}

// Whether a number of the two boxes of a sample is NaN. The loop is not unrolled, so that it needs few registers.
__device__ __forceinline__ bool has_nan(const Box* boxes) {
  const float* numbers = reinterpret_cast<const float*>(boxes);
  bool found = false;
#pragma unroll 1
  for (int k = 0; k < 8; ++k) found = found || numbers[k] != numbers[k];
  return found;
}

__device__ __forceinline__ void set_box(Sample* s, int side, const Box& box) {
  s->box[side][0] = q16(box.top);
  s->box[side][1] = q16(box.left);
  s->box[side][2] = q16(box.height);
  s->box[side][3] = q16(box.width);
}

__device__ __forceinline__ int64_t label_at(const Labels& labels, int64_t i) {
  switch (labels.size) {
    case 1:
      return labels.is_signed ? int64_t{static_cast<const int8_t*>(labels.values)[i]}
                              : int64_t{static_cast<const uint8_t*>(labels.values)[i]};
    case 2: return static_cast<const int16_t*>(labels.values)[i];
    case 4: return static_cast<const int32_t*>(labels.values)[i];
    default: return static_cast<const int64_t*>(labels.values)[i];
  }
}

// Draws samples [first, first + count) of the batch. The first warp draws one sample per lane, and the next two warps
// draw the crops of its images.
__device__ __forceinline__ void draw_samples(const MixImages& m, int64_t first, int count, Shared* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane >= count || warp > (m.crop.enabled ? 2 : 0)) return;
  Sample* s = &shared->sample[lane];
  uint64_t n = 0;
  const bool drawable = sample_number(m.sequence, first + lane, &n) && shared->tables_valid;
  if (warp > 0) {
    const uint32_t side = static_cast<uint32_t>(warp) - 1;
    set_box(s, warp - 1, crop_box(sample_words(m.sequence.seed, n, 2 + side), m.crop, m.height, m.width));
    return;
  }
  Drawn drawn = {0, 0, -1, nan_value(), 0};
  bool valid = drawable && shared->tables.num_examples == m.total;
  if (valid) {
    drawn = draw_sample(shared->tables, m.sequence.seed, n);
    valid = drawn.group >= 0 && is_valid(m, drawn.index, drawn.partner);
  }
  if (!valid) set_error(m.error_flag, kBadTables);
  s->valid = valid;
  s->index = drawn.index;
  s->partner = drawn.partner;
  s->group = drawn.group;
  s->lam = drawn.lam;
  s->flip[0] = m.crop.flip && (drawn.flip_bits & 1);
  s->flip[1] = m.crop.flip && (drawn.flip_bits & 2);
}

// Writes labels, lam, index, partner and group of samples [first, first + count). If `skip_first`, another block mixes
// the start of the first sample and writes its values. Only the last warp writes, so that no other warp waits for the
// labels.
__device__ __forceinline__ void write_samples(const MixImages& m, int64_t first, int count, bool skip_first,
                                              const Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) - (static_cast<int>(blockDim.x) - kWarp);
  if (lane < (skip_first ? 1 : 0) || lane >= count) return;
  const Sample& s = shared.sample[lane];
  const int64_t at = first + lane;
  const bool keep_label = s.valid && (shared.tables.flags & kFlagKeepLabels);
  m.drawn.index[at] = s.index;
  m.drawn.partner[at] = s.partner;
  m.drawn.group[at] = s.group;
  m.drawn.lam[at] = s.lam;
  m.labels.label[at] = s.valid ? label_at(m.labels, s.index) : 0;
  m.labels.partner_label[at] = s.valid ? label_at(m.labels, keep_label ? s.index : s.partner) : 0;
}

// Reads samples [first, first + count) from the arguments, one per lane of the first warp.
__device__ __forceinline__ void read_samples(const MixImages& m, int64_t first, int count, Shared* shared) {
  if (static_cast<int>(threadIdx.x) >= count) return;
  const int64_t at = first + threadIdx.x;
  Sample* s = &shared->sample[threadIdx.x];
  s->index = m.index[at];
  s->partner = m.partner[at];
  s->lam = m.lam[at];
  const bool in_range = is_valid(m, s->index, s->partner);
  s->valid = in_range && is_weight(s->lam) && (m.boxes == nullptr || !has_nan(m.boxes + 2 * at));
  if (!s->valid) set_error(m.error_flag, sample_error(in_range));
  for (int side = 0; side < 2; ++side) {
    s->flip[side] = m.flips != nullptr && m.flips[2 * at + side] != 0;
    if (m.boxes != nullptr) set_box(s, side, m.boxes[2 * at + side]);
  }
}

// Checks mean and std, with the limits of the CPU operators. One block calls this.
__device__ __forceinline__ void check_normalization(const MixImages& m) {
  for (int c = static_cast<int>(threadIdx.x); c < m.channels; c += static_cast<int>(blockDim.x)) {
    const float mean = m.mean[c], std = m.std[c];
    if (!(mean >= 0.0f && mean <= 1.0f && std >= 0.001f && std <= 2.0f)) set_error(m.error_flag, kBadValue);
  }
}

// The image of the index (side 0) or of the partner (side 1). The pointer must not be read if the sample is not valid.
__device__ __forceinline__ const uint8_t* image_of(const MixImages& m, const Sample& s, int side) {
  const int64_t image = side == 0 ? s.index : s.partner;
  return m.images + (s.valid ? image : 0) * m.image_stride;
}

__device__ __forceinline__ Blend blend_at(const MixImages& m, const Sample& s, int channel) {
  if (!s.valid) return {0.0f, 0.0f, nan_value()};
  return blend_of(s.lam, __ldg(m.mean + channel), __ldg(m.std + channel));
}

// Mixes 16-byte vectors [begin, end) of a sample without crop or flip whose bytes have the order of the output:
// channels last, or one channel. The coefficients of a vector's elements repeat with kPeriod: 3 for three channels, 4
// for one, two or four.
template <Format kFormat, int kPeriod>
__device__ __forceinline__ void mix_vectors(const MixImages& m, const Sample& s, int64_t at, int begin, int end) {
  const int64_t size = int64_t{m.height} * m.width * m.channels;
  const uint8_t *index_image = image_of(m, s, 0), *partner_image = image_of(m, s, 1);
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * size;
  const bool has_partner = s.lam != 1.0f;
  int v = (begin & ~1) + static_cast<int>(threadIdx.x);  // a pair of lanes processes vectors 2 i and 2 i + 1
  Blend k[kPeriod];
#pragma unroll
  for (int c = 0; c < kPeriod; ++c) {
    k[c] = blend_at(m, s, (kPeriod == 3 ? (v % 3 + c) % 3 : c % m.channels));
  }
  uint4 a = make_uint4(0, 0, 0, 0), b = a;
  const auto load = [&](int vector) {
    if (vector < begin || vector >= end || !s.valid) return;
    a = load16(index_image + 16 * int64_t{vector});
    b = has_partner ? load16(partner_image + 16 * int64_t{vector}) : a;
  };
  load(v);
  for (int first = begin & ~1; first < end; first += kThreads, v += kThreads) {
    const uint32_t words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
    load(v + kThreads);  // overlaps with the arithmetic on the current vectors
    float value[16];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      value[e] = k[e % kPeriod].apply(byte_value(words_a[e / 4], e % 4), byte_value(words_b[e / 4], e % 4));
    }
    store_sixteen<kFormat>(out + 16 * int64_t{v}, value, v >= begin && v < end);
  }
}

// Mixes runs [begin, end) of 16 pixels of three channels, without crop or flip, into planes.
template <Format kFormat>
__device__ __forceinline__ void mix_planes(const MixImages& m, const Sample& s, int64_t at, int begin, int end) {
  const int64_t pixels = int64_t{m.height} * m.width;
  const uint8_t *index_image = image_of(m, s, 0), *partner_image = image_of(m, s, 1);
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * 3 * pixels;
  const bool has_partner = s.lam != 1.0f;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  for (int first = begin & ~1; first < end; first += kThreads) {
    const int run = first + static_cast<int>(threadIdx.x);
    const bool active = run >= begin && run < end;
    uint32_t a[12] = {}, b[12] = {};
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      if (!active || !s.valid) continue;
      const uint4 p = load16(index_image + 48 * int64_t{run} + 16 * part);
      const uint4 q = has_partner ? load16(partner_image + 48 * int64_t{run} + 16 * part) : p;
      a[4 * part] = p.x, a[4 * part + 1] = p.y, a[4 * part + 2] = p.z, a[4 * part + 3] = p.w;
      b[4 * part] = q.x, b[4 * part + 1] = q.y, b[4 * part + 2] = q.z, b[4 * part + 3] = q.w;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      float value[16];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int byte = 3 * j + c;
        value[j] = k[c].apply(byte_value(a[byte / 4], byte % 4), byte_value(b[byte / 4], byte % 4));
      }
      store_sixteen<kFormat>(out + c * pixels + 16 * int64_t{run}, value, active);
    }
  }
}

// Channel c of the linear interpolation between two adjacent pixels, whose six bytes are in `low` and `high`.
__device__ __forceinline__ float interpolate(uint32_t low, uint32_t high, int c, float f) {
  const float p = shifted_byte(low, c), q = c == 0 ? shifted_byte(low, 3) : shifted_byte(high, c - 1);
  return fmaf(f, q - p, p - kShift);
}

// The six bytes of two adjacent pixels, at byte `offset` of an image. Reads whole words, none beyond word `last`.
struct PixelPair {
  uint32_t low, high;

  __device__ __forceinline__ PixelPair(const uint32_t* image, int offset, int last) {
    const int word = offset >> 2;
    const uint32_t first = __ldg(image + word), second = __ldg(image + min(word + 1, last));
    const uint32_t third = __ldg(image + min(word + 2, last));
    const uint32_t shift = (static_cast<uint32_t>(offset) & 3u) * 8u;
    low = __funnelshift_r(first, second, shift);
    high = __funnelshift_r(second, third, shift);
  }
};

// Mixes output rows [begin, end) of three channels, two adjacent pixels per thread. The taps are in shared memory:
// `column` [2, out_width] and `row` [kTapRows, 2]. The size and the address of images must be multiples of a word, and
// the sample must be valid.
template <Format kFormat, bool kBilinear>
__device__ __forceinline__ void mix_pairs(const MixImages& m, const Sample& s, int64_t at, int begin, int end,
                                          const ColumnTap* column, const RowTap* row) {
  const int64_t pixels = int64_t{m.out_height} * m.out_width;
  const int last = m.height * m.width * 3 / 4 - 1, width = m.out_width, pairs = (width + 1) / 2;
  const uint32_t* image[2] = {reinterpret_cast<const uint32_t*>(m.images + s.index * m.image_stride),
                              reinterpret_cast<const uint32_t*>(m.images + s.partner * m.image_stride)};
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * 3 * pixels;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  const bool store_pairs = width % 2 == 0;
  for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * pairs; i += kThreads) {
    const int r = i / pairs, x = 2 * (i - r * pairs), count = min(2, width - x);
    float value[2][3];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float side[2][3] = {};
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        if (which == 1 && s.lam == 1.0f) continue;
        const RowTap y = row[2 * r + which];
        const ColumnTap tap = column[which * width + min(x + j, width - 1)];
        const PixelPair upper(image[which], y.upper + tap.offset, last);
        if constexpr (kBilinear) {
          const PixelPair lower(image[which], y.lower + tap.offset, last);
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            side[which][c] =
                lerp(interpolate(upper.low, upper.high, c, tap.f), interpolate(lower.low, lower.high, c, tap.f), y.f);
          }
        } else {
#pragma unroll
          for (int c = 0; c < 3; ++c) side[which][c] = byte_value(upper.low, c);
        }
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) value[j][c] = k[c].apply(side[0][c], side[1][c]);
    }
    const int64_t pixel = int64_t{begin + r} * width + x;
    if (m.channels_last) {
      TypeOf<kFormat>* to = out + 3 * pixel;
      if (store_pairs) {
        store_two<kFormat>(to, value[0][0], value[0][1]);
        store_two<kFormat>(to + 2, value[0][2], value[1][0]);
        store_two<kFormat>(to + 4, value[1][1], value[1][2]);
        continue;
      }
      for (int c = 0; c < 3; ++c) to[c] = Element<kFormat>::store(value[0][c]);
      for (int c = 0; c < 3 && count == 2; ++c) to[3 + c] = Element<kFormat>::store(value[1][c]);
      continue;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      TypeOf<kFormat>* to = out + c * pixels + pixel;
      if (store_pairs) {
        store_two<kFormat>(to, value[0][c], value[1][c]);
        continue;
      }
      to[0] = Element<kFormat>::store(value[0][c]);
      if (count == 2) to[1] = Element<kFormat>::store(value[1][c]);
    }
  }
}

// Fills output rows [begin, end) of three channels with NaN.
template <Format kFormat>
__device__ __forceinline__ void fill_nan(const MixImages& m, int64_t at, int begin, int end) {
  const int64_t pixels = int64_t{m.out_height} * m.out_width, rows = int64_t{end - begin} * m.out_width;
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * 3 * pixels;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    const int64_t pixel = int64_t{begin} * m.out_width + i;
    for (int c = 0; c < 3; ++c) {
      out[m.channels_last ? 3 * pixel + c : c * pixels + pixel] = Element<kFormat>::store(nan_value());
    }
  }
}

// Mixes output rows [begin, end) of any shape and alignment with loads of single bytes.
template <Format kFormat>
__device__ __forceinline__ void mix_bytes(const MixImages& m, const Sample& s, int64_t at, int begin, int end,
                                          bool crops) {
  const int64_t pixels = int64_t{m.out_height} * m.out_width;
  const int64_t line = int64_t{m.width} * m.channels;
  const uint8_t* image[2] = {image_of(m, s, 0), image_of(m, s, 1)};
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * m.channels * pixels;
  for (int64_t i = threadIdx.x; i < int64_t{end - begin} * m.out_width; i += kThreads) {
    const int y = begin + static_cast<int>(i / m.out_width), x = static_cast<int>(i % m.out_width);
    Tap row[2], column[2];
    for (int side = 0; side < 2; ++side) {
      const int mirrored = s.flip[side] ? m.out_width - 1 - x : x;
      row[side] = {y, y, 0.0f};
      column[side] = {mirrored, mirrored, 0.0f};
      if (!crops) continue;
      row[side] = axis_tap(s.box[side][0], s.box[side][2], m.height, m.out_height, y);
      column[side] = axis_tap(s.box[side][1], s.box[side][3], m.width, m.out_width, mirrored);
    }
    for (int c = 0; c < m.channels; ++c) {
      float value[2] = {};
      for (int side = 0; side < 2; ++side) {
        if (!s.valid || (side == 1 && s.lam == 1.0f)) continue;
        const uint8_t *upper = image[side] + row[side].i0 * line + c, *lower = image[side] + row[side].i1 * line + c;
        const int64_t left = int64_t{column[side].i0} * m.channels, right = int64_t{column[side].i1} * m.channels;
        value[side] = lerp(lerp(upper[left], upper[right], column[side].f),
                           lerp(lower[left], lower[right], column[side].f), row[side].f);
      }
      const int64_t pixel = int64_t{y} * m.out_width + x;
      const int64_t to = m.channels_last ? pixel * m.channels + c : c * pixels + pixel;
      out[to] = Element<kFormat>::store(blend_at(m, s, c).apply(value[0], value[1]));
    }
  }
}

}  // namespace spurmix::cuda

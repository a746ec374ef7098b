// Image pairs: which sample a block works on, and the ways its pixels are mixed.
#pragma once

#include "draw.cuh"

namespace spurmix::cuda {

constexpr int kThreads = 192;  // a multiple of 96: a thread keeps the channel its vectors of 16 bytes begin with
constexpr int kRows = 128;     // output rows whose taps are kept at a time

constexpr int kDrawn = 32;  // samples that a block draws, or reads, at once: a lane each

// One sample, as all threads of a block see it.
struct Sample {
  int64_t own, other, group;
  float lam;
  bool known;         // else its output is NaN and its images are not read
  bool flip[2];       // own, other
  int64_t box[2][4];  // Q16: top, left, height, width
};

// What a block keeps in shared memory.
struct Shared {
  Tables tables;
  Sample sample[kDrawn];
  int64_t nearby[kNearby];
  bool opened;
};

struct alignas(16) RowTap {
  int32_t upper, lower;  // bytes from the image's begin
  float f;
};

struct ColumnTap {
  int32_t at;  // bytes from the row's begin; in rows of whole words, of a pixel that has a right neighbour
  float f;
};

__device__ __forceinline__ bool is_known(const MixImages& m, int64_t own, int64_t other) {
  return own >= 0 && own < m.total && other >= 0 && other < m.total;
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

// Draws `count` samples from `first` on: a lane of the first warp each; their crops by the two warps after it.
__device__ __forceinline__ void draw_samples(const MixImages& m, int64_t first, int count, Shared* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane >= count || warp > (m.crop.enabled ? 2 : 0)) return;
  Sample* s = &shared->sample[lane];
  uint64_t n = 0;
  const bool valid = sample_number(m.sequence, first + lane, &n) && shared->opened;
  if (warp > 0) {
    const uint32_t side = static_cast<uint32_t>(warp) - 1;
    set_box(s, warp - 1, crop_box(sample_words(m.sequence.seed, n, 2 + side), m.crop, m.height, m.width));
    return;
  }
  Drawn drawn = {0, 0, -1, nan_value(), 0};
  bool known = valid && shared->tables.num_examples == m.total;
  if (known) {
    drawn = draw_sample(shared->tables, m.sequence.seed, n);
    known = is_known(m, drawn.index, drawn.partner);
  }
  if (!known) raise(m.flag, kBadTables);
  s->known = known;
  s->own = drawn.index;
  s->other = drawn.partner;
  s->group = drawn.group;
  s->lam = drawn.lam;
  s->flip[0] = m.crop.flip && (drawn.flip_bits & 1);
  s->flip[1] = m.crop.flip && (drawn.flip_bits & 2);
}

// The small outputs of `count` samples from `first` on, without the first one unless `whole`: another block begins it.
// By the last warp, so that no other one waits for the labels.
__device__ __forceinline__ void write_samples(const MixImages& m, int64_t first, int count, bool whole,
                                              const Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) - (static_cast<int>(blockDim.x) - kWarp);
  if (lane < (whole ? 0 : 1) || lane >= count) return;
  const Sample& s = shared.sample[lane];
  const int64_t at = first + lane;
  const bool keep = s.known && (shared.tables.flags & kKeepLabels);
  m.drawn.index[at] = s.own;
  m.drawn.partner[at] = s.other;
  m.drawn.group[at] = s.group;
  m.drawn.lam[at] = s.lam;
  m.labels.label[at] = s.known ? label_at(m.labels, s.own) : 0;
  m.labels.partner_label[at] = s.known ? label_at(m.labels, keep ? s.own : s.other) : 0;
}

// Reads what the caller gave for `count` samples from `first` on: a lane of the first warp each.
__device__ __forceinline__ void read_samples(const MixImages& m, int64_t first, int count, Shared* shared) {
  if (static_cast<int>(threadIdx.x) >= count) return;
  const int64_t at = first + threadIdx.x;
  Sample* s = &shared->sample[threadIdx.x];
  s->own = m.index[at];
  s->other = m.partner[at];
  s->lam = m.lam[at];
  s->known = is_known(m, s->own, s->other);
  if (!s->known) raise(m.flag, kBadIndex);
  for (int side = 0; side < 2; ++side) {
    s->flip[side] = m.flips != nullptr && m.flips[2 * at + side] != 0;
    if (m.boxes != nullptr) set_box(s, side, m.boxes[2 * at + side]);
  }
}

// An image of a pair, 0 or 1; any at all where the sample is not known and nothing is read.
__device__ __forceinline__ const uint8_t* image_of(const MixImages& m, const Sample& s, int side) {
  const int64_t at = side == 0 ? s.own : s.other;
  return m.images + (s.known ? at : 0) * m.image_stride;
}

__device__ __forceinline__ Blend blend_at(const MixImages& m, const Sample& s, int channel) {
  if (!s.known) return {0.0f, 0.0f, nan_value()};
  return blend_of(s.lam, __ldg(m.mean + channel), __ldg(m.std + channel));
}

// Vectors [begin, end) of 16 bytes of a sample without crop or flip, channels last or of one channel: the order of the
// bytes is that of the output. kPeriod: 3 for three channels; 4 for one, two or four.
template <Format kFormat, int kPeriod>
__device__ __forceinline__ void mix_vectors(const MixImages& m, const Sample& s, int64_t at, int begin, int end) {
  const int64_t size = int64_t{m.height} * m.width * m.channels;
  const uint8_t *own = image_of(m, s, 0), *other = image_of(m, s, 1);
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * size;
  const bool paired = s.lam != 1.0f;
  int v = (begin & ~1) + static_cast<int>(threadIdx.x);  // lanes of a pair hold an even vector and the next
  Blend k[kPeriod];
#pragma unroll
  for (int c = 0; c < kPeriod; ++c) {
    k[c] = blend_at(m, s, (kPeriod == 3 ? (v % 3 + c) % 3 : c % m.channels));
  }
  uint4 a = make_uint4(0, 0, 0, 0), b = a;
  const auto fetch = [&](int at_vector) {
    if (at_vector < begin || at_vector >= end || !s.known) return;
    a = load16(own + 16 * int64_t{at_vector});
    b = paired ? load16(other + 16 * int64_t{at_vector}) : a;
  };
  fetch(v);
  for (int first = begin & ~1; first < end; first += kThreads, v += kThreads) {
    const uint32_t words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
    fetch(v + kThreads);  // under way while these are mixed
    float value[16];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      value[e] = k[e % kPeriod].of(byte_value(words_a[e / 4], e % 4), byte_value(words_b[e / 4], e % 4));
    }
    store_sixteen<kFormat>(out + 16 * int64_t{v}, value, v >= begin && v < end);
  }
}

// Runs [begin, end) of 16 pixels of three channels, without crop or flip, into planes.
template <Format kFormat>
__device__ __forceinline__ void mix_planes(const MixImages& m, const Sample& s, int64_t at, int begin, int end) {
  const int64_t pixels = int64_t{m.height} * m.width;
  const uint8_t *own = image_of(m, s, 0), *other = image_of(m, s, 1);
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * 3 * pixels;
  const bool paired = s.lam != 1.0f;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  for (int first = begin & ~1; first < end; first += kThreads) {
    const int run = first + static_cast<int>(threadIdx.x);
    const bool mine = run >= begin && run < end;
    uint32_t a[12] = {}, b[12] = {};
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      if (!mine || !s.known) continue;
      const uint4 p = load16(own + 48 * int64_t{run} + 16 * part);
      const uint4 q = paired ? load16(other + 48 * int64_t{run} + 16 * part) : p;
      a[4 * part] = p.x, a[4 * part + 1] = p.y, a[4 * part + 2] = p.z, a[4 * part + 3] = p.w;
      b[4 * part] = q.x, b[4 * part + 1] = q.y, b[4 * part + 2] = q.z, b[4 * part + 3] = q.w;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      float value[16];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int byte = 3 * j + c;
        value[j] = k[c].of(byte_value(a[byte / 4], byte % 4), byte_value(b[byte / 4], byte % 4));
      }
      store_sixteen<kFormat>(out + c * pixels + 16 * int64_t{run}, value, mine);
    }
  }
}

// Channel c of the first of two neighbouring pixels, whose bytes are in `low` and `high`, on the way to the second.
__device__ __forceinline__ float between(uint32_t low, uint32_t high, int c, float f) {
  const float p = shifted_byte(low, c), q = c == 0 ? shifted_byte(low, 3) : shifted_byte(high, c - 1);
  return fmaf(f, q - p, p - kShift);
}

// Six bytes from byte `at` of an image of `words` words on, the last ones of the image read twice instead of passed.
struct SixBytes {
  uint32_t low, high;

  __device__ __forceinline__ SixBytes(const uint32_t* image, int at, int last) {
    const int word = at >> 2;
    const uint32_t first = __ldg(image + word), second = __ldg(image + min(word + 1, last));
    const uint32_t third = __ldg(image + min(word + 2, last));
    const uint32_t shift = (static_cast<uint32_t>(at) & 3u) * 8u;
    low = __funnelshift_r(first, second, shift);
    high = __funnelshift_r(second, third, shift);
  }
};

// Output rows [begin, end) of three channels, in pairs of neighbouring pixels. Crops are bilinear by taps in shared
// memory: `column` [2, out_width], `row` [kRows, 2]. Images must be whole words of memory, the sample known.
template <Format kFormat, bool kBilinear>
__device__ __forceinline__ void mix_pairs(const MixImages& m, const Sample& s, int64_t at, int begin, int end,
                                          const ColumnTap* column, const RowTap* row) {
  const int64_t pixels = int64_t{m.out_height} * m.out_width;
  const int last = m.height * m.width * 3 / 4 - 1, width = m.out_width, pairs = (width + 1) / 2;
  const uint32_t* image[2] = {reinterpret_cast<const uint32_t*>(m.images + s.own * m.image_stride),
                              reinterpret_cast<const uint32_t*>(m.images + s.other * m.image_stride)};
  TypeOf<kFormat>* out = static_cast<TypeOf<kFormat>*>(m.out) + at * 3 * pixels;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  const bool wide = width % 2 == 0;
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
        const SixBytes upper(image[which], y.upper + tap.at, last);
        if constexpr (kBilinear) {
          const SixBytes lower(image[which], y.lower + tap.at, last);
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            side[which][c] =
                lerp(between(upper.low, upper.high, c, tap.f), between(lower.low, lower.high, c, tap.f), y.f);
          }
        } else {
#pragma unroll
          for (int c = 0; c < 3; ++c) side[which][c] = byte_value(upper.low, c);
        }
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) value[j][c] = k[c].of(side[0][c], side[1][c]);
    }
    const int64_t pixel = int64_t{begin + r} * width + x;
    if (m.channels_last) {
      TypeOf<kFormat>* to = out + 3 * pixel;
      if (wide) {
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
      if (wide) {
        store_two<kFormat>(to, value[0][c], value[1][c]);
        continue;
      }
      to[0] = Element<kFormat>::store(value[0][c]);
      if (count == 2) to[1] = Element<kFormat>::store(value[1][c]);
    }
  }
}

// Output rows [begin, end) of three channels, all NaN.
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

// Output rows [begin, end) of any shape, byte by byte.
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
        if (!s.known || (side == 1 && s.lam == 1.0f)) continue;
        const uint8_t *upper = image[side] + row[side].i0 * line + c, *lower = image[side] + row[side].i1 * line + c;
        const int64_t left = int64_t{column[side].i0} * m.channels, right = int64_t{column[side].i1} * m.channels;
        value[side] = lerp(lerp(upper[left], upper[right], column[side].f),
                           lerp(lower[left], lower[right], column[side].f), row[side].f);
      }
      const int64_t pixel = int64_t{y} * m.out_width + x;
      const int64_t to = m.channels_last ? pixel * m.channels + c : c * pixels + pixel;
      out[to] = Element<kFormat>::store(blend_at(m, s, c).of(value[0], value[1]));
    }
  }
}

}  // namespace spurmix::cuda

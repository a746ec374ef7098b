// Random crops of three channels: bilinear, by warps that walk down strips of the output.
#pragma once

#include "images.cuh"

namespace spurmix::cuda {

constexpr int kCropThreads = 256, kWarps = kCropThreads / kWarp;
constexpr int kAcross = 64;  // output pixels of a row that a warp makes at a time
constexpr int kAhead = 6;    // rows of output whose images are asked for ahead, into the L2 cache

// One image of a pair, as a lane of mix_crops sees it: two output pixels of a row, and the two image rows they lie
// between. Image rows are whole words.
struct Cropped {
  const uint8_t* image;
  int at[2];  // of the left taps, bytes from a row's begin
  float f[2];
  int upper_at = -1, lower_at = -1;  // the rows that are held, bytes from the image's begin
  float upper[2][3], lower[2][3];    // their values between the columns
  uint32_t below[2][3];              // words of the next lower row

  __device__ __forceinline__ const uint32_t* words(int row, int j) const {
    return reinterpret_cast<const uint32_t*>(image + row + (at[j] & ~3));
  }

  // The words of six bytes; the third one where they reach into it, from the last byte of a word alone.
  __device__ __forceinline__ void load(int row, int j, uint32_t (&word)[3]) const {
    const uint32_t* from = words(row, j);
    word[0] = __ldg(from);
    word[1] = __ldg(from + 1);
    word[2] = (at[j] & 3) == 3 ? __ldg(from + 2) : 0;
  }

  __device__ __forceinline__ void between_columns(int j, const uint32_t (&word)[3], float (&values)[3]) const {
    const uint32_t shift = static_cast<uint32_t>(at[j]) * 8u;  // its five low bits are taken
    const uint32_t low = __funnelshift_r(word[0], word[1], shift), high = __funnelshift_r(word[1], word[2], shift);
#pragma unroll
    for (int c = 0; c < 3; ++c) values[c] = between(low, high, c, f[j]);
  }

  // Begins to read what a row of output needs and what is not held.
  __device__ __forceinline__ void fetch(const RowTap& y) {
    if (y.upper != lower_at && y.upper != upper_at) prefetch(words(y.upper, 0));
    if (y.lower != y.upper && y.lower != lower_at) {
      load(y.lower, 0, below[0]);
      load(y.lower, 1, below[1]);
    }
  }

  // Holds the rows that `fetch` saw to.
  __device__ __forceinline__ void take(const RowTap& y) {
    if (y.upper == lower_at) {
      copy(lower, upper);
    } else if (y.upper != upper_at) {
      uint32_t word[2][3];
      load(y.upper, 0, word[0]);
      load(y.upper, 1, word[1]);
      between_columns(0, word[0], upper[0]);
      between_columns(1, word[1], upper[1]);
    }
    if (y.lower == y.upper) {
      copy(upper, lower);
    } else if (y.lower != lower_at) {
      between_columns(0, below[0], lower[0]);
      between_columns(1, below[1], lower[1]);
    }
    upper_at = y.upper;
    lower_at = y.lower;
  }

  static __device__ __forceinline__ void copy(const float (&from)[2][3], float (&to)[2][3]) {
#pragma unroll
    for (int k = 0; k < 6; ++k) to[k / 3][k % 3] = from[k / 3][k % 3];
  }
};

// Output rows [begin, end) of three channels, cropped from images whose rows are whole words. A warp walks down a strip
// of kAcross columns: an image row is read and interpolated once for all output rows beside it, the next one is under
// way meanwhile. `column` and `row` as of mix_pairs; `stage`: shared, [2, kWarps, 3 * kAcross], through which rows of
// channels-last output become wide stores.
template <Format kFormat>
__device__ __forceinline__ void mix_crops(const MixImages& m, const Sample& s, int64_t at, int begin, int end,
                                          const ColumnTap* column, const RowTap* row, TypeOf<kFormat>* stage) {
  using Type = TypeOf<kFormat>;
  const int64_t pixels = int64_t{m.out_height} * m.out_width;
  const int width = m.out_width, rows = end - begin, strips = (width + kAcross - 1) / kAcross;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Type* out = static_cast<Type*>(m.out) + at * 3 * pixels;
  const bool paired = s.lam != 1.0f, staged = m.channels_last && width % 8 == 0;
  const int pixel_step = m.channels_last ? 3 : 1;
  const int64_t plane = m.channels_last ? 1 : pixels;
  constexpr int kEach = 16 / sizeof(Type), kVectors = 3 * kAcross / kEach;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  // All rows of all strips, a warp an equal part of them.
  const int each = (strips * rows + kWarps - 1) / kWarps, stop = min(strips * rows, each * (warp + 1));
  for (int step = each * warp; step < stop;) {
    const int strip = step / rows, first = step - strip * rows, last = min(rows, first + stop - step);
    const int x = strip * kAcross + 2 * lane;
    Cropped side[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      Cropped& c = side[which];
      c.image = m.images + (which == 0 ? s.own : s.other) * m.image_stride;
#pragma unroll
      for (int k = 0; k < 6; ++k) c.upper[k / 3][k % 3] = c.lower[k / 3][k % 3] = 0;  // of a sample without partner
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const ColumnTap tap = column[which * width + min(x + j, width - 1)];
        c.at[j] = tap.at;
        c.f[j] = tap.f;
      }
    }
    Type* to = out + (int64_t{begin + first} * width + (staged ? strip * kAcross : x)) * pixel_step;
    const int vectors = min(kVectors, 3 * (width - strip * kAcross) / kEach);
    RowTap own = row[2 * first], other = row[2 * first + 1];
    side[0].fetch(own);
    if (paired) side[1].fetch(other);
    for (int r = first; r < last; ++r) {
      const float down[2] = {own.f, other.f};
      side[0].take(own);
      if (paired) side[1].take(other);
      if (r + 1 < last) {
        own = row[2 * r + 2];
        other = row[2 * r + 3];
        side[0].fetch(own);
        if (paired) side[1].fetch(other);
      }
      if (r + kAhead < last) {
        prefetch(side[0].words(row[2 * (r + kAhead)].lower, 0));
        if (paired) prefetch(side[1].words(row[2 * (r + kAhead) + 1].lower, 0));
      }
      float value[2][3];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const float a = lerp(side[0].upper[j][c], side[0].lower[j][c], down[0]);
          const float b = lerp(side[1].upper[j][c], side[1].lower[j][c], down[1]);
          value[j][c] = k[c].of(a, b);
        }
      }
      if (staged) {
        // One of two in turns: the other one may still be read.
        Type* line = stage + (((step + r - first) & 1) * kWarps + warp) * (3 * kAcross);
        store_two<kFormat>(line + 6 * lane, value[0][0], value[0][1]);
        store_two<kFormat>(line + 6 * lane + 2, value[0][2], value[1][0]);
        store_two<kFormat>(line + 6 * lane + 4, value[1][1], value[1][2]);
        __syncwarp();
#pragma unroll
        for (int v = 0; v < kVectors; v += kWarp) {
          if (v + lane < vectors) {
            reinterpret_cast<uint4*>(to)[v + lane] = reinterpret_cast<const uint4*>(line)[v + lane];
          }
        }
        to += 3 * width;
        continue;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          if (x + j < width) to[j * pixel_step + c * plane] = Element<kFormat>::store(value[j][c]);
        }
      }
      to += width * pixel_step;
    }
    step += last - first;
  }
}

}  // namespace spurmix::cuda

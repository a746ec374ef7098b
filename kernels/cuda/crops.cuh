// Bilinear crops of three channels. A warp processes a strip of output columns from top to bottom.
#pragma once

#include "mix_images.cuh"

namespace spurmix::cuda {

constexpr int kCropThreads = 256, kWarps = kCropThreads / kWarp;
constexpr int kStripWidth = 64;   // output columns of a strip, two per lane
constexpr int kPrefetchRows = 6;  // distance of the prefetch into the L2 cache, in output rows

// State of a lane for one image of a pair: two output pixels of a row, and the two image rows between which they are
// interpolated. The size of image rows is a multiple of a word.
struct LaneCrop {
  const uint8_t* image;
  int column[2];                       // byte offsets of the left taps in a row
  float f[2];                          // weights of the right taps
  int upper_row = -1, lower_row = -1;  // byte offsets of the current rows in the image
  float upper[2][3], lower[2][3];      // their horizontally interpolated values
  uint32_t below[2][3];                // words of the next lower row

  __device__ __forceinline__ const uint32_t* words(int row, int j) const {
    return reinterpret_cast<const uint32_t*>(image + row + (column[j] & ~3));
  }

  // Loads the words of six bytes. A third word is needed only if the six bytes start at byte 3 of a word.
  __device__ __forceinline__ void load(int row, int j, uint32_t (&word)[3]) const {
    const uint32_t* from = words(row, j);
    word[0] = __ldg(from);
    word[1] = __ldg(from + 1);
    word[2] = (column[j] & 3) == 3 ? __ldg(from + 2) : 0;
  }

  __device__ __forceinline__ void interpolate_columns(int j, const uint32_t (&word)[3], float (&values)[3]) const {
    const uint32_t shift = static_cast<uint32_t>(column[j]) * 8u;  // the hardware uses the low five bits
    const uint32_t low = __funnelshift_r(word[0], word[1], shift), high = __funnelshift_r(word[1], word[2], shift);
#pragma unroll
    for (int c = 0; c < 3; ++c) values[c] = interpolate(low, high, c, f[j]);
  }

  // Starts the loads for an output row, unless its image rows are the current ones.
  __device__ __forceinline__ void start_loads(const RowTap& y) {
    if (y.upper != lower_row && y.upper != upper_row) prefetch(words(y.upper, 0));
    if (y.lower != y.upper && y.lower != lower_row) {
      load(y.lower, 0, below[0]);
      load(y.lower, 1, below[1]);
    }
  }

  // Makes the image rows of an output row current, after start_loads.
  __device__ __forceinline__ void advance(const RowTap& y) {
    if (y.upper == lower_row) {
      copy(lower, upper);
    } else if (y.upper != upper_row) {
      uint32_t word[2][3];
      load(y.upper, 0, word[0]);
      load(y.upper, 1, word[1]);
      interpolate_columns(0, word[0], upper[0]);
      interpolate_columns(1, word[1], upper[1]);
    }
    if (y.lower == y.upper) {
      copy(upper, lower);
    } else if (y.lower != lower_row) {
      interpolate_columns(0, below[0], lower[0]);
      interpolate_columns(1, below[1], lower[1]);
    }
    upper_row = y.upper;
    lower_row = y.lower;
  }

  static __device__ __forceinline__ void copy(const float (&from)[2][3], float (&to)[2][3]) {
#pragma unroll
    for (int k = 0; k < 6; ++k) to[k / 3][k % 3] = from[k / 3][k % 3];
  }
};

// Mixes output rows [begin, end) of crops of three channels. The size of image rows must be a multiple of a word. A
// warp processes a strip of kStripWidth columns from top to bottom. Each image row is loaded and interpolated once, and
// reused by all output rows that need it. The loads of the next image row overlap with the arithmetic. `column` and
// `row` are the taps, as for mix_pairs. `stage` is shared memory [2, kWarps, 3 * kStripWidth], which turns
// channels-last output into 16-byte stores.
template <Format kFormat>
__device__ __forceinline__ void mix_crops(const MixImages& m, const Sample& s, int64_t at, int begin, int end,
                                          const ColumnTap* column, const RowTap* row, TypeOf<kFormat>* stage) {
  using Type = TypeOf<kFormat>;
  const int64_t pixels = int64_t{m.out_height} * m.out_width;
  const int width = m.out_width, rows = end - begin, strips = (width + kStripWidth - 1) / kStripWidth;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Type* out = static_cast<Type*>(m.out) + at * 3 * pixels;
  const bool has_partner = s.lam != 1.0f, staged = m.channels_last && width % 8 == 0;
  const int pixel_step = m.channels_last ? 3 : 1;
  const int64_t plane = m.channels_last ? 1 : pixels;
  constexpr int kPerVector = 16 / sizeof(Type), kVectors = 3 * kStripWidth / kPerVector;
  const Blend k[3] = {blend_at(m, s, 0), blend_at(m, s, 1), blend_at(m, s, 2)};
  // The rows of all strips are divided equally among the warps.
  const int each = (strips * rows + kWarps - 1) / kWarps, stop = min(strips * rows, each * (warp + 1));
  for (int step = each * warp; step < stop;) {
    const int strip = step / rows, first = step - strip * rows, last = min(rows, first + stop - step);
    const int x = strip * kStripWidth + 2 * lane;
    LaneCrop side[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      LaneCrop& c = side[which];
      c.image = m.images + (which == 0 ? s.index : s.partner) * m.image_stride;
#pragma unroll
      for (int k = 0; k < 6; ++k)
        c.upper[k / 3][k % 3] = c.lower[k / 3][k % 3] = 0;  // a sample without partner does not load them
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const ColumnTap tap = column[which * width + min(x + j, width - 1)];
        c.column[j] = tap.offset;
        c.f[j] = tap.f;
      }
    }
    Type* to = out + (int64_t{begin + first} * width + (staged ? strip * kStripWidth : x)) * pixel_step;
    const int vectors = min(kVectors, 3 * (width - strip * kStripWidth) / kPerVector);
    RowTap index_row = row[2 * first], partner_row = row[2 * first + 1];
    side[0].start_loads(index_row);
    if (has_partner) side[1].start_loads(partner_row);
    for (int r = first; r < last; ++r) {
      const float f[2] = {index_row.f, partner_row.f};
      side[0].advance(index_row);
      if (has_partner) side[1].advance(partner_row);
      if (r + 1 < last) {
        index_row = row[2 * r + 2];
        partner_row = row[2 * r + 3];
        side[0].start_loads(index_row);
        if (has_partner) side[1].start_loads(partner_row);
      }
      if (r + kPrefetchRows < last) {
        prefetch(side[0].words(row[2 * (r + kPrefetchRows)].lower, 0));
        if (has_partner) prefetch(side[1].words(row[2 * (r + kPrefetchRows) + 1].lower, 0));
      }
      float value[2][3];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const float a = lerp(side[0].upper[j][c], side[0].lower[j][c], f[0]);
          const float b = lerp(side[1].upper[j][c], side[1].lower[j][c], f[1]);
          value[j][c] = k[c].apply(a, b);
        }
      }
      if (staged) {
        // Double buffering: lanes may still read the line of the previous row.
        Type* line = stage + (((step + r - first) & 1) * kWarps + warp) * (3 * kStripWidth);
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

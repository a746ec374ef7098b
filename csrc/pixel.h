// Crop boxes, bilinear taps, normalization and half-precision conversions, for host and device.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"

namespace spurmix {

enum class Format { f32, f16, bf16, f64 };

struct Box {
  float top, left, height, width;  // pixels
};

struct Crop {
  bool enabled;
  float scale_low, scale_high, log_ratio_low, log_ratio_high;
  bool flip;
};

// Random resized crop from four random words. The parameters are those of torchvision's RandomResizedCrop; boxes beyond
// the image are clamped instead of drawn again.
SPURMIX_HD Box crop_box(const Words& words, const Crop& crop, int64_t height, int64_t width) {
  float u[4];
  for (int k = 0; k < 4; ++k) u[k] = static_cast<float>(words.v[k]) * 0x1p-32f;
  const float rows = static_cast<float>(height), columns = static_cast<float>(width);
  const float area = static_cast<float>(height * width) * (crop.scale_low + (crop.scale_high - crop.scale_low) * u[0]);
  const float ratio = expf(crop.log_ratio_low + (crop.log_ratio_high - crop.log_ratio_low) * u[1]);
  const float w = fminf(columns, sqrtf(area * ratio)), h = fminf(rows, sqrtf(area / ratio));
  return {u[2] * (rows - h), u[3] * (columns - w), h, w};
}

// Coordinate in units of 2^-16 pixel (Q16), clamped to +-2^20 pixels; NaN becomes 0. Taps are computed from these
// integers, so all backends select the same pixels.
SPURMIX_HD int64_t q16(float v) {
  const float limit = 1048576.0f;
  v = v != v ? 0.0f : (v < -limit ? -limit : (v > limit ? limit : v));
  return static_cast<int64_t>(rint(static_cast<double>(v) * 65536.0));
}

// The two pixels of a linear interpolation.
struct Tap {
  int32_t i0, i1;
  float f;  // weight of i1
};

// Tap of output position k of `out` positions, which sample [start, start + extent) (Q16) of an axis of `size` pixels
// at half-pixel centers, clamped to the image.
SPURMIX_HD Tap axis_tap(int64_t start, int64_t extent, int64_t size, int64_t out, int64_t k) {
  const int64_t product = (2 * k + 1) * extent, divisor = 2 * out;
  int64_t step = product / divisor;
  if (product % divisor < 0) --step;  // floor
  int64_t p = start + step - 32768;
  const int64_t last = (size - 1) << 16;
  p = p < 0 ? 0 : (p > last ? last : p);
  const int32_t i0 = static_cast<int32_t>(p >> 16);
  const int32_t i1 = i0 + 1 < size ? i0 + 1 : i0;
  return {i0, i1, static_cast<float>(p & 65535) * (1.0f / 65536.0f)};
}

SPURMIX_HD float lerp(float p, float q, float f) { return p + f * (q - p); }

// Mix and normalization of a channel as one affine function of the bytes a (index) and b (partner).
struct Blend {
  float index_scale, partner_scale, bias;

  SPURMIX_HD float apply(float a, float b) const { return fmaf(index_scale, a, fmaf(partner_scale, b, bias)); }
};

SPURMIX_HD Blend blend_of(float lam, float mean, float std) {
  const float scale = 1.0f / (255.0f * std);
  return {lam * scale, (1.0f - lam) * scale, -mean / std};
}

SPURMIX_HD uint32_t float_bits(float v) {
  uint32_t u;
  memcpy(&u, &v, 4);
  return u;
}

// To bfloat16, rounded to nearest even; NaN stays NaN.
SPURMIX_HD uint16_t to_bfloat16(float v) {
  const uint32_t u = float_bits(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

SPURMIX_HD float from_bfloat16(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

// To IEEE half, rounded to nearest even. Has no branches, so that compilers vectorize it.
SPURMIX_HD uint16_t to_half(float v) {
  const uint32_t u = float_bits(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  // Subnormal halves: adding 0.5 aligns the significand with the last bit of a half and rounds it.
  const uint32_t small = float_bits(bits_float(a) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;  // changes the exponent's bias by -112 and rounds
  const uint32_t large = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t magnitude = a < 0x38800000u ? small : (a >= 0x477ff000u ? large : normal);
  return static_cast<uint16_t>(sign | magnitude);
}

SPURMIX_HD float from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, a = h & 0x7fffu;
  const float normal = bits_float((a << 13) + 0x38000000u);
  const float small = static_cast<float>(static_cast<int32_t>(a)) * 0x1p-24f;
  const float special = bits_float((a << 13) + 0x70000000u);
  const float magnitude = a < 0x400u ? small : (a >= 0x7c00u ? special : normal);
  return bits_float(float_bits(magnitude) | sign);
}

}  // namespace spurmix

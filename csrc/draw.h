// The draw: sample number -> index, partner, lam, group. All integers, so every backend gives the same bits.
// ARCHITECTURE.md, "The draw", is the specification; spurmix/ops/reference_draw.py is the same in PyTorch.
#pragma once

#include "philox.h"

namespace spurmix {

constexpr int64_t kTablesMagic = 0x5350524D49580001;
constexpr int64_t kHeader = 16;
constexpr int64_t kQuantiles = 1025;
constexpr int64_t kReplacement = 1, kKeepLabels = 2;

// A view of the packed int64 tables that spurmix/core/tables.py builds. Header words: 0 magic, 1 length, 2 N, 3 G, 4 S,
// 5 W, 6 R, 7 flags, 8 to 15 starts of the sections slots[W] (stratum << 32 | rank), share[S], first[S], size[S],
// offsets[G + 1], row_of[G], threshold[R * G], quantile[1025].
struct Tables {
  int64_t num_examples, num_groups, period, flags;
  const int64_t *slot, *share, *first, *size, *offsets, *row_of, *threshold, *quantile;
  const int32_t* members32;  // at most one of the two; neither: positions are example numbers
  const int64_t* members64;

  SPURMIX_HD bool has_partners() const { return quantile != threshold; }  // any threshold rows
};

// Why packed tables were rejected, or null. Constant time: contents are checked where the tables are built. `nearby`
// holds the first `nearby_length` words once more where a device reads them sooner; sections within it are read there.
SPURMIX_HD const char* view_tables(const int64_t* packed, int64_t length, Tables* view, const int64_t* nearby = nullptr,
                                   int64_t nearby_length = 0) {
  if (length < kHeader) return "not packed draw tables of this version";
  const int64_t* header = nearby_length >= kHeader ? nearby : packed;
  if (header[0] != kTablesMagic) return "not packed draw tables of this version";
  if (header[1] != length) return "the header's length is not the tensor's";
  const int64_t n = header[2], g = header[3], s = header[4], w = header[5], r = header[6];
  const int64_t limit = int64_t{1} << 31;
  if (n < 1 || g < 1 || s < 1 || w < 1 || r < 0 || g > limit || s > limit || w > limit || r > g) {
    return "the header's counts are impossible";
  }
  const int64_t sizes[8] = {w, s, s, s, g + 1, g, r * g, kQuantiles};
  int64_t start = kHeader;
  for (int k = 0; k < 8; ++k) {
    if (header[8 + k] != start) return "the header's sections do not follow each other";
    start += sizes[k];
  }
  if (start != length) return "the sections do not fill the tensor";
  const int64_t* at[8];
  for (int k = 0; k < 8; ++k) {
    at[k] = (header[8 + k] + sizes[k] <= nearby_length ? nearby : packed) + header[8 + k];
  }
  *view = {n, g, w, header[7], at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], nullptr, nullptr};
  return nullptr;
}

struct Drawn {
  int64_t index, partner, group;
  float lam;
  uint32_t flip_bits;  // bits 0 and 1 flip the index's and the partner's image
};

SPURMIX_HD uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// Of round r; chosen without an index, which on a device would put the words into memory.
SPURMIX_HD uint32_t round_key(const Words& key, uint32_t r) {
  const uint32_t even = r & 2 ? key.v[2] : key.v[0], odd = r & 2 ? key.v[3] : key.v[1];
  return (r & 1 ? odd : even) + r * 0x9E3779B9u;
}

// Position p under the permutation of [0, m) that `key` selects, m below 2^62.
SPURMIX_HD uint64_t permute(uint64_t p, uint64_t m, const Words& key) {
  if (m <= 16) {  // a Fisher-Yates shuffle, followed for one element: a Feistel network is biased this small
    uint32_t x = static_cast<uint32_t>(p);
    for (uint32_t i = static_cast<uint32_t>(m); i-- > 0;) {
      const uint32_t j = mulhi32(mix32(round_key(key, i)), i + 1);
      x = x == i ? j : (x == j ? i : x);
    }
    return x;
  }
  const int bits = bit_length(m - 1), lo = bits / 2;
  const uint32_t low_mask = (1u << lo) - 1;
  const uint32_t high_mask = static_cast<uint32_t>((uint64_t{1} << (bits - lo)) - 1);
  uint64_t x = p;
  do {
    uint32_t low = static_cast<uint32_t>(x) & low_mask, high = static_cast<uint32_t>(x >> lo);
    for (uint32_t r = 0; r < 8; r += 2) {
      low ^= mix32(mix32(high ^ round_key(key, r))) & low_mask;
      high ^= mix32(mix32(low ^ round_key(key, r + 1))) & high_mask;
    }
    x = (static_cast<uint64_t>(high) << lo) | low;
  } while (x >= m);
  return x;
}

SPURMIX_HD Words stratum_key(uint64_t seed, uint32_t stratum, uint64_t cycle) {
  return philox(seed, stratum, static_cast<uint32_t>(cycle), static_cast<uint32_t>(cycle >> 32), 0x50);
}

SPURMIX_HD int64_t member(const Tables& t, int64_t position) {
  return t.members32 ? t.members32[position] : t.members64 ? t.members64[position] : position;
}

// Number of leading entries of ascending `values` that are <= x.
SPURMIX_HD int64_t count_at_most(const int64_t* values, int64_t count, int64_t x) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool right = values[low + half] <= x;
    low = right ? low + half + 1 : low;
    count = right ? count - half - 1 : half;
  }
  return low;
}

// A member of group h, relative to its first, by 64 random bits.
SPURMIX_HD uint64_t pick_member(const Tables& t, int64_t h, uint32_t high, uint32_t low) {
  return mulhi64((static_cast<uint64_t>(high) << 32) | low, static_cast<uint64_t>(t.offsets[h + 1] - t.offsets[h]));
}

// lam by inverse transform sampling: the quantile table, interpolated.
SPURMIX_HD float lam_of(const Tables& t, uint32_t z) {
  const uint32_t bucket = z >> 22, fraction = z & ((1u << 22) - 1);
  const int64_t low = t.quantile[bucket], high = t.quantile[bucket + 1];
  return static_cast<float>(low + (((high - low) * static_cast<int64_t>(fraction)) >> 22)) * (1.0f / (1 << 24));
}

SPURMIX_HD Drawn draw_sample(const Tables& t, uint64_t seed, uint64_t n) {
  const uint64_t period = static_cast<uint64_t>(t.period);
  const uint64_t cycle_of_slots = n / period;
  const int64_t slot = t.slot[n - cycle_of_slots * period];
  const int64_t s = slot >> 32, rank = slot & 0xFFFFFFFF;
  const uint64_t size = static_cast<uint64_t>(t.size[s]);
  const Words block0 = sample_words(seed, n, 0), block1 = sample_words(seed, n, 1);

  uint64_t position;
  if (t.flags & kReplacement) {
    position = mulhi64((static_cast<uint64_t>(block0.v[0]) << 32) | block0.v[1], size);
  } else {
    const uint64_t k = cycle_of_slots * static_cast<uint64_t>(t.share[s]) + static_cast<uint64_t>(rank);
    const uint64_t cycle = k / size;
    position = permute(k - cycle * size, size, stratum_key(seed, static_cast<uint32_t>(s), cycle));
  }
  const int64_t at = t.first[s] + static_cast<int64_t>(position);
  Drawn drawn;
  drawn.index = member(t, at);
  drawn.group = count_at_most(t.offsets, t.num_groups + 1, at) - 1;
  drawn.flip_bits = block1.v[3];

  const int64_t row = t.row_of[drawn.group];
  if (row < 0) {
    drawn.partner = drawn.index;
    drawn.lam = 1.0f;
    return drawn;
  }
  const int64_t h = count_at_most(t.threshold + row * t.num_groups, t.num_groups, block0.v[2]);
  drawn.partner = member(t, t.offsets[h] + static_cast<int64_t>(pick_member(t, h, block1.v[0], block1.v[1])));
  drawn.lam = lam_of(t, block1.v[2]);
  return drawn;
}

}  // namespace spurmix

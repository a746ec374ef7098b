// The draw: sample number -> index, partner, group, lam. Integer arithmetic only, so all backends give the same bits.
// docs/draw-specification.md is the specification, spurmix/ops/reference/draw.py implements it in PyTorch.
#pragma once

#include "philox.h"

namespace spurmix {

// Layout of the packed tables. spurmix/core/table_layout.py defines the same names (kWordLength is WORD_LENGTH there),
// and a test compares the values.
constexpr int64_t kMagic = 0x5350524D49580001;
constexpr int64_t kHeaderWords = 16;
constexpr int64_t kWordMagic = 0;
constexpr int64_t kWordLength = 1;
constexpr int64_t kWordNumExamples = 2;
constexpr int64_t kWordNumGroups = 3;
constexpr int64_t kWordNumStrata = 4;
constexpr int64_t kWordPeriod = 5;
constexpr int64_t kWordNumRows = 6;
constexpr int64_t kWordFlags = 7;
constexpr int64_t kWordStarts = 8;
constexpr int64_t kFlagReplacement = 1;
constexpr int64_t kFlagKeepLabels = 2;
constexpr int64_t kQuantiles = 1025;
constexpr int64_t kMaxCount = 2147483648;

// View of the packed int64 tables. The pointers are the sections, in the order of their memory.
struct Tables {
  int64_t num_examples, num_groups, num_strata, num_rows, period, flags;
  const int64_t *slot, *share, *first, *size, *offsets, *row_of, *threshold, *quantile;
  // Example number of each position. At most one of the two is set. If none is, positions are example numbers.
  const int32_t* members32;
  const int64_t* members64;

  SPURMIX_HD bool has_partners() const { return quantile != threshold; }  // the threshold section is not empty
};

// Returns an error message, or null if the header is valid. Takes constant time: the CPU kernels check the contents of
// sections where they use them. `cached` is an optional copy of the first `cached_length` words in faster memory.
// Sections that it contains are read from there.
SPURMIX_HD const char* view_tables(const int64_t* packed, int64_t length, Tables* view, const int64_t* cached = nullptr,
                                   int64_t cached_length = 0) {
  if (length < kHeaderWords) return "not packed draw tables of this version";
  const int64_t* header = cached_length >= kHeaderWords ? cached : packed;
  if (header[kWordMagic] != kMagic) return "not packed draw tables of this version";
  if (header[kWordLength] != length) return "the header's length is not the tensor's";
  const int64_t n = header[kWordNumExamples], g = header[kWordNumGroups], s = header[kWordNumStrata];
  const int64_t w = header[kWordPeriod], r = header[kWordNumRows];
  if (n < 1 || g < 1 || s < 1 || w < 1 || r < 0 || g > kMaxCount || s > kMaxCount || w > kMaxCount || r > g) {
    return "the header's counts are impossible";
  }
  const int64_t sizes[8] = {w, s, s, s, g + 1, g, r * g, kQuantiles};
  int64_t start = kHeaderWords;
  for (int k = 0; k < 8; ++k) {
    if (header[kWordStarts + k] != start) return "the header's sections do not follow each other";
    start += sizes[k];
  }
  if (start != length) return "the sections do not fill the tensor";
  const int64_t* section[8];
  for (int k = 0; k < 8; ++k) {
    const int64_t begin = header[kWordStarts + k];
    section[k] = (begin + sizes[k] <= cached_length ? cached : packed) + begin;
  }
  *view = {n,          g,          s,          r,          w,          header[kWordFlags], section[0], section[1],
           section[2], section[3], section[4], section[5], section[6], section[7],         nullptr,    nullptr};
  return nullptr;
}

struct Drawn {
  int64_t index, partner, group;
  float lam;
  uint32_t flip_bits;  // bit 0 flips the image of the index, bit 1 that of the partner
};

// Bijective hash.
SPURMIX_HD uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// Key of round r. Indexing `key.v` by a variable would move the words from registers to local memory on a GPU.
SPURMIX_HD uint32_t round_key(const Words& key, uint32_t r) {
  const uint32_t even = r & 2 ? key.v[2] : key.v[0], odd = r & 2 ? key.v[3] : key.v[1];
  return (r & 1 ? odd : even) + r * 0x9E3779B9u;
}

// Position of p under the permutation of [0, m) that `key` selects, for m < 2^62: a Fisher-Yates shuffle if m <= 16,
// else a Feistel network of eight rounds with cycle walking.
SPURMIX_HD uint64_t permute(uint64_t p, uint64_t m, const Words& key) {
  if (m <= 16) {  // over so few values, a Feistel network is biased
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

// Number of entries of ascending `values` that are <= x.
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

// Uniform position in group h, relative to the group's first position, from 64 random bits.
SPURMIX_HD uint64_t pick_member(const Tables& t, int64_t h, uint32_t high, uint32_t low) {
  const uint64_t size = static_cast<uint64_t>(t.offsets[h + 1]) - static_cast<uint64_t>(t.offsets[h]);
  return mulhi64((static_cast<uint64_t>(high) << 32) | low, size);
}

// lam by inverse transform sampling, with linear interpolation in the quantile table.
SPURMIX_HD float lam_of(const Tables& t, uint32_t z) {
  const uint32_t bucket = z >> 22, fraction = z & ((1u << 22) - 1);
  const int64_t low = t.quantile[bucket], high = t.quantile[bucket + 1];
  return static_cast<float>(low + (((high - low) * static_cast<int64_t>(fraction)) >> 22)) * (1.0f / (1 << 24));
}

SPURMIX_HD Drawn draw_sample(const Tables& t, uint64_t seed, uint64_t n) {
  const uint64_t period = static_cast<uint64_t>(t.period);
  const uint64_t schedule_cycle = n / period;
  const int64_t slot = t.slot[n - schedule_cycle * period];
  const int64_t s = slot >> 32, rank = slot & 0xFFFFFFFF;
  const uint64_t size = static_cast<uint64_t>(t.size[s]);
  const Words block0 = sample_words(seed, n, 0), block1 = sample_words(seed, n, 1);

  uint64_t position;
  if (t.flags & kFlagReplacement) {
    position = mulhi64((static_cast<uint64_t>(block0.v[0]) << 32) | block0.v[1], size);
  } else {
    const uint64_t visit = schedule_cycle * static_cast<uint64_t>(t.share[s]) + static_cast<uint64_t>(rank);
    const uint64_t cycle = visit / size;
    position = permute(visit - cycle * size, size, stratum_key(seed, static_cast<uint32_t>(s), cycle));
  }
  const int64_t index_position = t.first[s] + static_cast<int64_t>(position);
  Drawn drawn;
  drawn.index = member(t, index_position);
  drawn.group = count_at_most(t.offsets, t.num_groups + 1, index_position) - 1;
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

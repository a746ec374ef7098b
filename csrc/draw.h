// The draw: sample number -> index, partner, group, lam. All arithmetic is on integers, except for running sums, which
// are compared in float64. Each of these operations is exact or rounded as IEEE 754 requires, so all backends give the
// same bits.
// docs/draw-specification.md is the specification, spurmix/ops/reference/draw.py implements it in PyTorch.
#pragma once

#include "philox.h"

namespace spurmix {

// Layout of the packed tables. spurmix/core/table_layout.py defines the same names (kWordLength is WORD_LENGTH there),
// and a test compares the values.
constexpr int64_t kMagic = 0x5350524D49580002;
constexpr int64_t kHeaderWords = 16;
constexpr int64_t kWordMagic = 0;
constexpr int64_t kWordLength = 1;
constexpr int64_t kWordNumExamples = 2;
constexpr int64_t kWordNumGroups = 3;
constexpr int64_t kWordNumStrata = 4;
constexpr int64_t kWordPeriod = 5;
constexpr int64_t kWordNumRows = 6;
constexpr int64_t kWordFlags = 7;
constexpr int64_t kWordListWords = 8;
constexpr int64_t kFlagReplacement = 1;
constexpr int64_t kFlagKeepLabels = 2;
constexpr int64_t kFlagSums = 4;
constexpr int64_t kFlagMembers = 8;
constexpr int64_t kQuantiles = 1025;
constexpr int64_t kRowWords = 5;
constexpr int64_t kSumHeadWords = 2;
constexpr int64_t kRunWords = 3;
constexpr int64_t kMaxCount = 2147483648;

// View of the packed int64 tables. The pointers are the sections, in the order of their memory.
struct Tables {
  int64_t num_examples, num_groups, num_strata, num_rows, period, flags, list_words;
  const int64_t *slot, *share, *first, *size, *offsets, *row_of, *rows, *lists, *quantile;
  // Example number of each position. At most one of the two is set. If none is, positions are example numbers.
  const int32_t* members32;
  const int64_t* members64;

  SPURMIX_HD bool has_partners() const { return num_rows > 0; }
};

// Returns an error message, or null if the header is valid. Takes constant time: draws check the contents of sections
// where they use them, so that no value of a section makes them read outside of the tables and members. `cached` is an
// optional copy of the first `cached_length` words in faster memory. Sections that it contains are read from there.
SPURMIX_HD const char* view_tables(const int64_t* packed, int64_t length, Tables* view, const int64_t* cached = nullptr,
                                   int64_t cached_length = 0) {
  if (length < kHeaderWords) return "not packed draw tables of this version";
  const int64_t* header = cached_length >= kHeaderWords ? cached : packed;
  if (header[kWordMagic] != kMagic) return "not packed draw tables of this version";
  if (header[kWordLength] != length) return "the header's length is not the tensor's";
  const int64_t n = header[kWordNumExamples], g = header[kWordNumGroups], s = header[kWordNumStrata];
  const int64_t w = header[kWordPeriod], r = header[kWordNumRows], l = header[kWordListWords];
  if (n < 1 || g < 1 || s < 1 || w < 1 || r < 0 || l < 0 || g > kMaxCount || s > kMaxCount || w > kMaxCount || r > g ||
      l > kMaxCount) {
    return "the header's counts are impossible";
  }
  const int64_t sizes[9] = {w, s, s, s, g + 1, g, r * kRowWords, l, kQuantiles};
  const int64_t* section[9];
  int64_t start = kHeaderWords;
  for (int k = 0; k < 9; ++k) {
    const int64_t end = start + sizes[k];
    section[k] = (end <= cached_length ? cached : packed) + start;
    start = end;
  }
  if (start != length) return "the sections do not fill the tensor";
  *view = {n,          g,          s,          r,          w,          header[kWordFlags],
           l,          section[0], section[1], section[2], section[3], section[4],
           section[5], section[6], section[7], section[8], nullptr,    nullptr};
  return nullptr;
}

// Whether `count` members belong to the tables. Tables of groups in the order of the examples need none.
SPURMIX_HD bool valid_member_count(const Tables& t, int64_t count) {
  return count == t.num_examples || (count == 0 && !(t.flags & kFlagMembers));
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

// Number of entries of ascending `values` that are <= x. The number of steps depends on `count` only, so that the loop
// has no branch that is hard to predict.
SPURMIX_HD int64_t count_at_most(const int64_t* values, int64_t count, int64_t x) {
  int64_t low = 0;
  while (count > 1) {
    const int64_t half = count / 2;
    low += values[low + half - 1] <= x ? half : 0;
    count -= half;
  }
  return low + (count == 1 && values[low] <= x);
}

// Whether x is in [0, count).
SPURMIX_HD bool in_range(int64_t x, int64_t count) { return static_cast<uint64_t>(x) < static_cast<uint64_t>(count); }

// Whether s is a stratum, and its positions are those of examples.
SPURMIX_HD bool valid_stratum(const Tables& t, int64_t s) {
  return in_range(s, t.num_strata) && t.first[s] >= 0 && t.size[s] > 0 && t.size[s] <= t.num_examples - t.first[s];
}

// Uniform position in group h, relative to the group's first position, from 64 random bits.
SPURMIX_HD uint64_t pick_member(const Tables& t, int64_t h, uint32_t high, uint32_t low) {
  const uint64_t size = static_cast<uint64_t>(t.offsets[h + 1]) - static_cast<uint64_t>(t.offsets[h]);
  return mulhi64((static_cast<uint64_t>(high) << 32) | low, size);
}

// Whether the threshold of a running sum, floor(2^32 * sum / total), is below `limit`, an integer.
SPURMIX_HD bool below(double sum, double total, double limit) { return sum * 4294967296.0 / total < limit; }

// Number of entries of a row of running sums whose threshold is <= w, or -1 if the words at `first` are invalid. The
// row has `count` entries.
SPURMIX_HD int64_t sums_at_most(const Tables& t, int64_t first, int64_t count, uint32_t w) {
  if (first < 0 || first + kSumHeadWords > t.list_words) return -1;
  const int64_t num_runs = t.lists[first];
  if (num_runs < 0 || num_runs > (t.list_words - first - kSumHeadWords) / kRunWords) return -1;
  const int64_t* runs = t.lists + first + kSumHeadWords;
  const double total = bits_double(t.lists[first + 1]), limit = static_cast<double>(w) + 1.0;
  int64_t low = 0, left = num_runs;  // the number of runs that begin below the limit
  while (left > 0) {
    const int64_t half = left / 2;
    const bool right = below(bits_double(runs[(low + half) * kRunWords + 1]), total, limit);
    low += right ? half + 1 : 0;
    left = right ? left - half - 1 : half;
  }
  if (low == 0) return 0;
  const int64_t* run = runs + (low - 1) * kRunWords;
  const int64_t begin = run[0], stop = low < num_runs ? run[kRunWords] : count;
  if (!in_range(begin, count) || !in_range(stop, count + 1)) return -1;
  // The estimate is the number of entries of the run below the limit, or up to 2 less.
  const double base = bits_double(run[1]), step = bits_double(run[2]), length = static_cast<double>(stop - begin);
  const double estimate = (limit * total * (1.0 / 4294967296.0) - base) / step;
  double entries = estimate > 0.0 ? estimate : 0.0;
  int64_t k = static_cast<int64_t>(entries < length ? entries : length);
  for (int repeat = 0; repeat < 2; ++repeat) {
    k += k < stop - begin && below(base + static_cast<double>(k) * step, total, limit);
  }
  return begin + k;
}

// Position of the partner of an index whose group has the row `row` of partners, or -1 if the tables have values that
// draw tables cannot have. The word `w` selects the entry of the row, `high` and `low` the member of its group.
SPURMIX_HD int64_t partner_position(const Tables& t, int64_t row, uint32_t w, uint32_t high, uint32_t low) {
  if (!in_range(row, t.num_rows)) return -1;
  const int64_t* words = t.rows + row * kRowWords;
  const int64_t first = words[0] >> 32, count = words[0] & 0xFFFFFFFF;
  int64_t entry;
  if (t.flags & kFlagSums) {
    entry = sums_at_most(t, first, count, w);
  } else {
    if (first < 0 || first + count > t.list_words) return -1;
    entry = count_at_most(t.lists + first, count, w);
  }
  int64_t slice = words[1];  // the last slice that begins at the entry or before it
  for (int64_t k = 2; k < kRowWords; ++k) slice = (words[k] >> 32) <= entry ? words[k] : slice;
  const int64_t at = (slice & 0xFFFFFFFF) + entry - (slice >> 32);
  if (!in_range(entry, count) || !in_range(at, t.list_words)) return -1;
  const int64_t h = t.lists[at];
  if (!in_range(h, t.num_groups)) return -1;
  const uint64_t position = static_cast<uint64_t>(t.offsets[h]) + pick_member(t, h, high, low);
  return in_range(static_cast<int64_t>(position), t.num_examples) ? static_cast<int64_t>(position) : -1;
}

// lam by inverse transform sampling, with linear interpolation in the quantile table. NaN if it is not in [0, 1].
SPURMIX_HD float lam_of(const Tables& t, uint32_t z) {
  const uint32_t bucket = z >> 22, fraction = z & ((1u << 22) - 1);
  const uint64_t low = static_cast<uint64_t>(t.quantile[bucket]), high = static_cast<uint64_t>(t.quantile[bucket + 1]);
  const int64_t lam = static_cast<int64_t>(low) + (static_cast<int64_t>((high - low) * fraction) >> 22);
  return in_range(lam, (1 << 24) + 1) ? static_cast<float>(lam) * (1.0f / (1 << 24)) : bits_float(0x7fc00000u);
}

// Draws sample n. If the tables have values that draw tables cannot have, the group is -1, lam NaN, and index and
// partner are 0.
SPURMIX_HD Drawn draw_sample(const Tables& t, uint64_t seed, uint64_t n) {
  const Drawn invalid = {0, 0, -1, bits_float(0x7fc00000u), 0};
  const uint64_t period = static_cast<uint64_t>(t.period);
  const uint64_t schedule_cycle = n / period;
  const int64_t slot = t.slot[n - schedule_cycle * period];
  const int64_t s = slot >> 32, rank = slot & 0xFFFFFFFF;
  if (!valid_stratum(t, s)) return invalid;
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
  drawn.group = count_at_most(t.offsets, t.num_groups + 1, index_position) - 1;
  if (!in_range(drawn.group, t.num_groups)) return invalid;
  drawn.index = member(t, index_position);
  if (!in_range(drawn.index, t.num_examples)) return invalid;
  drawn.flip_bits = block1.v[3];

  const int64_t row = t.row_of[drawn.group];
  if (row < 0) {
    drawn.partner = drawn.index;
    drawn.lam = 1.0f;
    return drawn;
  }
  const int64_t partner = partner_position(t, row, block0.v[2], block1.v[0], block1.v[1]);
  if (partner < 0) return invalid;
  drawn.partner = member(t, partner);
  drawn.lam = lam_of(t, block1.v[2]);
  return in_range(drawn.partner, t.num_examples) && drawn.lam == drawn.lam ? drawn : invalid;
}

}  // namespace spurmix

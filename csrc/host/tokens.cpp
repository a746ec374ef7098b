#include "tokens.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace spurmix::host {
namespace {

constexpr int64_t kPrefetch = 8;  // rows ahead: texts are short and anywhere in memory

struct Span {
  int64_t begin, end;
};

bool is_row(const Texts& texts, int64_t row) { return row >= 0 && row < texts.count; }

Span span_of(const Texts& texts, int64_t row) {
  if (!is_row(texts, row)) {
    throw std::out_of_range("index " + std::to_string(row) + " is out of range for " + std::to_string(texts.count) +
                            " texts");
  }
  const Span span = {texts.offsets[row], texts.offsets[row + 1]};
  if (span.begin < 0 || span.end < span.begin || span.end > texts.total) {
    throw std::out_of_range("offsets of text " + std::to_string(row) + " are out of range or descend");
  }
  return span;
}

}  // namespace

void pair_lengths(const Texts& texts, const int64_t* index, const int64_t* partner, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetch < count) {
      for (const int64_t next : {index[i + kPrefetch], partner[i + kPrefetch]}) {
        if (is_row(texts, next)) __builtin_prefetch(texts.offsets + next);
      }
    }
    const Span first = span_of(texts, index[i]), second = span_of(texts, partner[i]);
    const int64_t longer = std::max(first.end - first.begin, second.end - second.begin);
    out[i] = static_cast<int32_t>(std::min({longer, texts.limit, int64_t{INT32_MAX}}));
  }
}

void pack_texts(const Texts& texts, const int64_t* rows, int64_t count, int64_t width, int64_t pad, int64_t* ids,
                uint8_t* mask) {
  for (int64_t i = 0; i < count; ++i, ids += width, mask += width) {
    if (i + kPrefetch < count && is_row(texts, rows[i + kPrefetch])) {
      const int64_t begin = texts.offsets[rows[i + kPrefetch]];
      if (begin >= 0 && begin < texts.total) __builtin_prefetch(texts.ids + begin);
    }
    const Span span = span_of(texts, rows[i]);
    const int64_t whole = span.end - span.begin, kept = std::min(whole, texts.limit);
    if (kept > width) {
      throw std::out_of_range("text " + std::to_string(rows[i]) + " has " + std::to_string(kept) +
                              " tokens, more than the width " + std::to_string(width));
    }
    std::copy(texts.ids + span.begin, texts.ids + span.begin + kept, ids);
    if (kept < whole && kept > 0 && texts.ids[span.end - 1] == texts.closing) ids[kept - 1] = texts.closing;
    std::fill(ids + kept, ids + width, pad);
    std::memset(mask, 1, kept);
    std::memset(mask + kept, 0, width - kept);
  }
}

}  // namespace spurmix::host

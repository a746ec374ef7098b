// Copies texts of different lengths into padded rows. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

struct Texts {
  const int32_t* ids;      // [total]
  const int64_t* offsets;  // [count + 1]: text t is ids[offsets[t]] to ids[offsets[t + 1]]
  int64_t total;
  int64_t count;
  int64_t limit;    // longer texts are truncated to this many tokens
  int64_t closing;  // token that stays the last one of a truncated text, or -1
};

// Writes the number of tokens of the longer one of texts index[i] and partner[i] to out [count]. Throws
// std::out_of_range if a row or an offset is out of range.
void pair_lengths(const Texts& texts, const int64_t* index, const int64_t* partner, int64_t count, int32_t* out);

// Writes the texts of `rows` to ids [count, width], padded with `pad`, and a mask that is 1 at tokens. Throws
// std::out_of_range if a row or an offset is out of range, before it reads the row, or if a text is longer than
// `width`.
void pack_texts(const Texts& texts, const int64_t* rows, int64_t count, int64_t width, int64_t pad, int64_t* ids,
                uint8_t* mask);

}  // namespace spurmix::host

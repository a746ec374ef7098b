// Ragged texts into padded rows. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

struct Texts {
  const int32_t* ids;      // [total]
  const int64_t* offsets;  // [count + 1]: text t is ids[offsets[t]] to ids[offsets[t + 1]]
  int64_t total;
  int64_t count;
  int64_t limit;    // tokens that are kept of a longer text
  int64_t closing;  // token that ends a shortened text where it ended the whole one; -1: none
};

// What rows index[i] and partner[i] take when they are padded together: the longer one's tokens, into out `[count]`.
// Throws std::out_of_range for a row that is none and for offsets that leave the ids.
void pair_lengths(const Texts& texts, const int64_t* index, const int64_t* partner, int64_t count, int32_t* out);

// The texts of `rows` into ids `[count, width]`, padded with `pad`, and mask (1 at tokens). Throws std::out_of_range
// as above, before anything of the row is read, and for a text longer than `width`.
void pack_texts(const Texts& texts, const int64_t* rows, int64_t count, int64_t width, int64_t pad, int64_t* ids,
                uint8_t* mask);

}  // namespace spurmix::host

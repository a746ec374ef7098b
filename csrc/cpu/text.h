// CPU kernels on token embeddings, on raw pointers like those of kernels.h; their arguments are checked by the caller.
#pragma once

#include <vector>

#include "kernels.h"

namespace spurmix::cpu {

// The tokens of two examples, [B, length]; masks may be null.
struct Lookups {
  const int64_t *ids, *partner_ids;
  const float* lam;
  const bool *mask, *partner_mask;
  int64_t length;

  // Weight of a token's own side and of its partner's.
  template <class T>
  T own(int64_t token) const {
    return mask == nullptr || mask[token] ? static_cast<T>(lam[token / length]) : T{0};
  }
  template <class T>
  T other(int64_t token) const {
    return partner_mask == nullptr || partner_mask[token] ? T{1} - static_cast<T>(lam[token / length]) : T{0};
  }
};

// Items: tokens.
struct MixEmbeddings {
  const void* weight;
  int64_t row_stride, columns;  // elements
  Format weight_format;
  Lookups lookups;
  void* out;
  Format format;
  bool stream;  // write past the caches
};
void mix_embeddings(const MixEmbeddings& args, int64_t begin, int64_t end);

// Which rows of a [tokens, columns] matrix add up to each row of a gradient: entries[offsets[r]] and following.
struct Entry {
  int64_t token;
  double weight;
};
struct Buckets {
  std::vector<int64_t> offsets;
  std::vector<Entry> entries;

  // Where to cut the rows into `parts` of about equal work.
  int64_t cut(int64_t part, int64_t parts) const;
  int64_t largest() const;
  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Both lookups by row, those of weight 0 and of row `padding` left out; in a row own tokens first, each side in order.
Buckets sort_lookups(const Lookups& lookups, int64_t tokens, int64_t rows, int64_t padding);
// Every token in the row that `ids` names, with weight 1; ids may be null: all in row 0.
Buckets sort_tokens(const int64_t* ids, int64_t tokens, int64_t rows);
// Leaves the empty rows out and returns the numbers of those that stay.
std::vector<int64_t> drop_empty(Buckets* buckets);

// Items: rows of out. Writes columns [first_column, last_column) of each: the sum of its entries, or zeros.
struct SumRows {
  const void* grad;
  int64_t columns;
  Format grad_format;
  const int64_t* offsets;
  const Entry* entries;
  void* out;
  Format format;
  bool stream;  // write past the caches
  int64_t first_column, last_column;
};
void sum_rows(const SumRows& args, int64_t begin, int64_t end);

// Items: tokens. The tables are of one format, contiguous but for `weight`; type_weight, token_type_ids may be null.
struct BertEmbeddings {
  const void* weight;
  int64_t row_stride, columns;
  const void *position_weight, *type_weight, *norm_weight, *norm_bias;
  Format table_format;
  Lookups lookups;
  const int64_t *position_ids, *token_type_ids;
  double eps;
  void* out;
  Format format;
  bool stream;
  void *mean, *rstd;  // float, double for f64 tables
};
void bert_embeddings(const BertEmbeddings& args, int64_t begin, int64_t end);

// Items: chunks of `chunk` tokens. Of `forward`, mean and rstd are read and norm_bias, eps and out not used.
struct BertBackward {
  BertEmbeddings forward;
  int64_t tokens, chunk;
  const void* grad;
  Format grad_format;
  void* grad_mixed;  // [tokens, columns], float, double for f64 tables
  void* partial;     // [chunks, 2, columns] likewise: sums of grad * normalised and of grad
};
void bert_backward(const BertBackward& args, int64_t begin, int64_t end);

}  // namespace spurmix::cpu

// CPU kernels on token embeddings, under the conventions of kernels.h.
#pragma once

#include <vector>

#include "kernels.h"

namespace spurmix::cpu {

// The token ids of pairs of texts, [B, length]. Masks may be null.
struct Lookups {
  const int64_t *ids, *partner_ids;
  const float* lam;
  const bool *mask, *partner_mask;
  int64_t length;

  // Weight of the word ids[token].
  template <class T>
  T weight(int64_t token) const {
    return mask == nullptr || mask[token] ? static_cast<T>(lam[token / length]) : T{0};
  }
  // Weight of the word partner_ids[token].
  template <class T>
  T partner_weight(int64_t token) const {
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
  bool stream;  // use streaming stores
};
void mix_embeddings(const MixEmbeddings& args, int64_t begin, int64_t end);

// Row r of a table's gradient is the weighted sum of rows `token` of a [tokens, columns] matrix, for entries
// [offsets[r], offsets[r + 1]).
struct Entry {
  int64_t token;
  double weight;
};
struct Buckets {
  std::vector<int64_t> offsets;
  std::vector<Entry> entries;

  // First row of part `part`, where the rows are divided into `parts` of about equal work.
  int64_t cut(int64_t part, int64_t parts) const;
  // Maximum number of entries of a row.
  int64_t largest() const;
  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Sorts the lookups of both texts by row, without those of weight 0 and of row `padding`. Within a row, lookups by ids
// come before those by partner_ids, each in the order of tokens.
Buckets sort_lookups(const Lookups& lookups, int64_t tokens, int64_t rows, int64_t padding);
// Sorts tokens by the row ids[token], with weight 1. If ids is null, all are in row 0.
Buckets sort_tokens(const int64_t* ids, int64_t tokens, int64_t rows);
// Removes empty rows, and returns the numbers of the remaining ones.
std::vector<int64_t> drop_empty(Buckets* buckets);

// Items: rows of out. Writes columns [first_column, last_column) of each row: the sum of its entries, or zeros.
struct SumRows {
  const void* grad;
  int64_t columns;
  Format grad_format;
  const int64_t* offsets;
  const Entry* entries;
  void* out;
  Format format;
  bool stream;  // use streaming stores
  int64_t first_column, last_column;
};
void sum_rows(const SumRows& args, int64_t begin, int64_t end);

// Items: tokens. All tables have one format. All but `weight` are contiguous. type_weight and token_type_ids may be
// null.
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
  bool stream;        // use streaming stores
  void *mean, *rstd;  // double for f64 tables, else float
};
void bert_embeddings(const BertEmbeddings& args, int64_t begin, int64_t end);

// Items: chunks of `chunk` tokens. Reads mean and rstd of `forward`; does not use its norm_bias, eps and out.
struct BertBackward {
  BertEmbeddings forward;
  int64_t tokens, chunk;
  const void* grad;
  Format grad_format;
  void* grad_mixed;  // [tokens, columns]; double for f64 tables, else float
  void* partial;     // [chunks, 2, columns], of the same type: sums of grad * normalized input, and of grad
};
void bert_backward(const BertBackward& args, int64_t begin, int64_t end);

}  // namespace spurmix::cpu

// Launchers of the CUDA kernels, independent of torch. They take raw device pointers and a stream, and return a
// cudaError_t as int. The caller checks shapes and layouts. The kernels check data. They read nothing at an index out
// of range or through damaged tables. They set a bit of the device's `error_flag`, and the sample becomes NaN (draws:
// lam is NaN, index and partner are 0). A sample with an invalid lam or box becomes NaN too. group_counts and the
// gradients of tables skip the entry.
#pragma once

#include "../../csrc/draw.h"
#include "../../csrc/pixel.h"

namespace spurmix::cuda {

// Bits of the error flag.
constexpr uint32_t kBadIndex = 1;
constexpr uint32_t kBadTables = 2;
constexpr uint32_t kBadValue = 4;  // lam, a box, mean or std

// The samples of a sequence, from number start + *counter on.
struct Sequence {
  const int64_t* tables;
  int64_t length;       // words of the tables
  const void* members;  // [member_count], or null
  int64_t member_count;
  int32_t member_size;  // 4 for int32, 8 for int64, 0 without members
  uint64_t seed, start;
  const int64_t* counter;  // or null
};

struct DrawOut {
  int64_t *index, *partner, *group;
  float* lam;
};

int draw(const Sequence& sequence, int64_t count, const DrawOut& out, uint32_t* error_flag, void* stream);

struct Labels {
  const void* values;  // [N]
  int32_t size;        // bytes of a label
  bool is_signed;
  int64_t *label, *partner_label;  // [B]
};

// Mixes pairs of images. mix_images takes the pairs from index, partner, lam, boxes and flips. mix_image_batch draws
// the pairs, their crops and their flips from `sequence`, and writes `drawn` and `labels`.
struct MixImages {
  const uint8_t* images;  // [total, height, width, channels], on the device or in pinned host memory
  int64_t image_stride, total;
  int32_t height, width, channels;
  const float *mean, *std;  // [channels]
  int32_t out_height, out_width;
  void* out;  // [B, channels, out_height, out_width]
  Format format;
  bool channels_last;
  int64_t batch;
  const int64_t *index, *partner;
  const float* lam;
  const Box* boxes;      // [B, 2], or null
  const uint8_t* flips;  // [B, 2], or null
  Sequence sequence;
  Crop crop;
  DrawOut drawn;
  Labels labels;
  uint32_t* error_flag;
};

int mix_images(const MixImages& args, void* stream);
int mix_image_batch(const MixImages& args, void* stream);

struct MixRows {
  const void* rows;  // [total, columns]
  int64_t row_stride, total, columns;
  Format rows_format;
  int64_t batch;
  const int64_t *index, *partner;
  const float* lam;
  void* out;  // [B, columns]
  Format format;
  uint32_t* error_flag;
};
int mix_rows(const MixRows& args, void* stream);

struct MixLabels {
  const int64_t *label, *partner_label;
  const float* lam;
  int64_t batch, classes;
  void* out;  // [B, classes]
  Format format;
  uint32_t* error_flag;
};
int mix_labels(const MixLabels& args, void* stream);

// `loss` and `logsumexp` are double for f64 logits, else float.
struct CrossEntropy {
  const void* logits;  // [B, classes]
  int64_t row_stride, batch, classes;
  Format format;
  const int64_t *label, *partner_label;
  const float* lam;
  double label_smoothing;
  void *loss, *logsumexp;  // [B]
  uint32_t* error_flag;
};
int cross_entropy(const CrossEntropy& args, void* stream);

// Writes factor * sum(loss), for losses [batch]. The order of the sum is fixed, so the result is deterministic.
int reduce_loss(const void* loss, int64_t batch, double factor, Format format, void* out, void* stream);

// Writes (softmax - target) * grad[b * grad_stride] * factor.
struct CrossEntropyBackward {
  CrossEntropy forward;
  const void* grad;
  int64_t grad_stride;
  double factor;
  void* grad_logits;  // [B, classes]
};
int cross_entropy_backward(const CrossEntropyBackward& args, void* stream);

// For each group g of a sample, adds 1 to counts[g][1], and 1 to counts[g][0] if the prediction is correct.
struct GroupCounts {
  const void* logits;
  int64_t row_stride, batch, classes;
  Format format;
  const int64_t *label, *group;  // [B]; group is in [-1, groups), or null
  const bool* member;            // [B, groups] if group is null
  int64_t groups;
  int64_t* counts;  // [groups, 2]
  uint32_t* error_flag;
};
int group_counts(const GroupCounts& args, void* stream);

// The token ids of pairs of texts, [B, S]. Their weights are lam and 1 - lam, or 0 where the mask is false. Masks may
// be null.
struct Lookups {
  const int64_t *ids, *partner_ids;
  const float* lam;  // [B]
  const bool *mask, *partner_mask;
  int64_t tokens, length;  // B * S, S
};

// A row of weight 0 is not read.
struct MixEmbeddings {
  const void* weight;  // [total, columns]
  int64_t row_stride, total, columns;
  Format table_format;
  Lookups lookups;
  void* out;  // [B, S, columns]
  Format format;
  uint32_t* error_flag;
};
int mix_embeddings(const MixEmbeddings& args, void* stream);

// LayerNorm of mixed words + positions + types. All tables have the format of the words. mean and rstd are double for
// f64 tables, else float.
struct BertEmbeddings {
  MixEmbeddings words;
  const void* position_weight;  // [positions, columns]
  int64_t positions;
  const void* type_weight;  // [types, columns], or null
  int64_t types;
  const void *norm_weight, *norm_bias;           // [columns]
  const int64_t *position_ids, *token_type_ids;  // [B, S]; without token_type_ids, all types are 0
  double eps;
  void *mean, *rstd;  // [B, S]
};
int bert_embeddings(const BertEmbeddings& args, void* stream);

// Writes the gradient of LayerNorm's input and, for each chunk of kBertChunk tokens, the sums of grad * normalized
// input and of grad. Reads mean and rstd of `forward`.
constexpr int64_t kBertChunk = 16;
struct BertBackward {
  BertEmbeddings forward;
  const void* grad;  // [B, S, columns]
  Format grad_format;
  void* grad_mixed;  // [B, S, columns], of the type of mean
  void* partial;     // [chunks, 2, columns], of the type of mean
};
int bert_backward(const BertBackward& args, void* stream);

// The gradient of a table is computed in four steps: entry_keys, a stable sort of the keys, arrange_entries, sum_rows.
// An entry is one lookup. The lookups by ids come first, then those by partner_ids. If partner_ids is null, there are
// only lookups by ids, and their weight is 1.
struct Entries {
  Lookups lookups;
  int64_t count, rows, padding_idx;
  int32_t* key;  // [count]: the row of each entry, or `rows` for entries without a gradient
  uint32_t* error_flag;
  // The following are used by arrange_entries, after `key` is sorted.
  const int64_t* order;  // [count]: the entry of each sorted key
  int64_t* token;        // output, [count]; null without partner_ids
  void* weight;          // output, [count], double if `wide`, else float; null without partner_ids
  int64_t* starts;       // output, [rows + 1]: the first sorted entry of each row
  bool* used;            // output, [rows]: whether the row has entries; or null
  bool wide;
};
int entry_keys(const Entries& args, void* stream);
int arrange_entries(const Entries& args, void* stream);

// Writes out[r] = sum of weight[k] * grad[token[k]] for k in [starts[row[r]], starts[row[r] + 1]). A first kernel sums
// each block of kPiece consecutive entries that belong to one row, so that long rows are summed in parallel.
constexpr int64_t kPiece = 64;
struct SumRows {
  const void* grad;  // [tokens, columns]
  int64_t columns;
  Format grad_format;
  const int32_t* key;
  const int64_t* token;
  const void* weight;  // null for weight 1
  int64_t entries, rows;
  const int64_t* starts;
  const int64_t* row;  // [count], or null for all rows
  int64_t count;
  bool wide;      // sums are double, else float
  void* partial;  // [entries / kPiece, columns], of the type of the sums
  void* out;      // [count, columns]
  Format format;
};
int sum_rows(const SumRows& args, void* stream);

}  // namespace spurmix::cuda

// Launchers of the CUDA kernels: raw device pointers, a stream, and a cudaError_t as int (0: launched). Free of torch.
// Shapes and layouts are checked by the caller. What is data is checked on the device: an index out of range or a
// damaged table is not followed, its sample becomes NaN and a bit of `flag` is set.
#pragma once

#include "../../csrc/draw.h"
#include "../../csrc/pixel.h"

namespace spurmix::cuda {

constexpr uint32_t kBadIndex = 1, kBadTables = 2;  // bits of a flag

// Samples start (+ *counter) onwards of a sequence. members: int32 or int64 by `member_size`, or none (0).
struct Sequence {
  const int64_t* tables;
  int64_t length;
  const void* members;
  int64_t member_count;
  int32_t member_size;
  uint64_t seed, start;
  const int64_t* counter;  // or null
};

struct DrawOut {
  int64_t *index, *partner, *group;
  float* lam;
};

int draw(const Sequence& sequence, int64_t count, const DrawOut& out, uint32_t* flag, void* stream);

struct Labels {
  const void* values;  // [N]
  int32_t size;        // bytes of an entry
  bool is_signed;
  int64_t *label, *partner_label;  // [B]
};

// Images [N, H, W, C] of which pairs are mixed. Either `sequence` draws the pairs, their crops and flips, and `drawn`
// and `labels` are written; or index, partner, lam and, where not null, boxes [B, 2] and flips [B, 2] say.
struct MixImages {
  const uint8_t* images;  // on the device, or in pinned host memory
  int64_t image_stride, total;
  int32_t height, width, channels;
  const float *mean, *std;
  int32_t out_height, out_width;
  void* out;
  Format format;
  bool channels_last;
  int64_t batch;
  const int64_t *index, *partner;
  const float* lam;
  const Box* boxes;
  const uint8_t* flips;
  Sequence sequence;
  Crop crop;
  DrawOut drawn;
  Labels labels;
  uint32_t* flag;
};

int mix_images(const MixImages& args, void* stream);
int mix_image_batch(const MixImages& args, void* stream);

struct MixRows {
  const void* rows;  // [N, D]
  int64_t row_stride, total, columns;
  Format rows_format;
  int64_t batch;
  const int64_t *index, *partner;
  const float* lam;
  void* out;  // [B, D]
  Format format;
  uint32_t* flag;
};
int mix_rows(const MixRows& args, void* stream);

struct MixLabels {
  const int64_t *label, *partner_label;
  const float* lam;
  int64_t batch, classes;
  void* out;  // [B, classes]
  Format format;
  uint32_t* flag;
};
int mix_labels(const MixLabels& args, void* stream);

// Loss and logsumexp are float, double for f64 logits.
struct CrossEntropy {
  const void* logits;  // [B, classes]
  int64_t row_stride, batch, classes;
  Format format;
  const int64_t *label, *partner_label;
  const float* lam;
  double label_smoothing;
  void *loss, *logsumexp;  // [B]
  uint32_t* flag;
};
int cross_entropy(const CrossEntropy& args, void* stream);

// One number of [B] losses: their sum times `factor`, added in a fixed order.
int reduce_loss(const void* loss, int64_t batch, double factor, Format format, void* out, void* stream);

// (softmax - target) * grad[b * grad_stride] * factor.
struct CrossEntropyBackward {
  CrossEntropy forward;
  const void* grad;
  int64_t grad_stride;
  double factor;
  void* grad_logits;  // [B, classes]
};
int cross_entropy_backward(const CrossEntropyBackward& args, void* stream);

// Adds (correct, 1) to counts [G, 2] of each sample's group, or of all groups it is a member of.
struct GroupCounts {
  const void* logits;
  int64_t row_stride, batch, classes;
  Format format;
  const int64_t *label, *group;  // group in [-1, groups), or null
  const bool* member;            // [B, groups], or null
  int64_t groups;
  int64_t* counts;
  uint32_t* flag;
};
int group_counts(const GroupCounts& args, void* stream);

// Tokens [B, S] of two texts each, of weight lam and 1 - lam, or 0 where a mask is false; null masks are true.
struct Lookups {
  const int64_t *ids, *partner_ids;
  const float* lam;  // [B]
  const bool *mask, *partner_mask;
  int64_t tokens, length;  // B * S, S
};

// What has weight 0 is not read.
struct MixEmbeddings {
  const void* weight;  // [V, D]
  int64_t row_stride, total, columns;
  Format table_format;
  Lookups lookups;
  void* out;  // [B, S, D]
  Format format;
  uint32_t* flag;
};
int mix_embeddings(const MixEmbeddings& args, void* stream);

// LayerNorm of mixed words + positions + types; all tables have the words' format. mean, rstd: float, double for f64.
struct BertEmbeddings {
  MixEmbeddings words;
  const void* position_weight;  // [P, D]
  int64_t positions;
  const void* type_weight;  // [T, D], or null
  int64_t types;
  const void *norm_weight, *norm_bias;           // [D]
  const int64_t *position_ids, *token_type_ids;  // [B, S]; types may be null: 0
  double eps;
  void *mean, *rstd;  // [B, S]
};
int bert_embeddings(const BertEmbeddings& args, void* stream);

// Gradients of the mixed words and, for every kBertChunk tokens, the sums of grad * normalised and of grad. Of the
// forward pass's results mean and rstd are read.
constexpr int64_t kBertChunk = 16;
struct BertBackward {
  BertEmbeddings forward;
  const void* grad;  // [B, S, D]
  Format grad_format;
  void *grad_mixed, *partial;  // [B, S, D], [chunks, 2, D]: like mean
};
int bert_backward(const BertBackward& args, void* stream);

// The gradient of a table: entries (both sides' tokens, one after the other; one side's, of weight 1, where partner_ids
// is null) are sorted by the row that they looked up, `rows` where they give no gradient, then each row is written
// once.
struct Entries {
  Lookups lookups;
  int64_t count, rows, padding_idx;
  int32_t* key;  // [entries], written by entry_keys, sorted before arrange_entries
  uint32_t* flag;
  // What arrange_entries makes of the sorted ones:
  const int64_t* order;
  int64_t* token;   // [entries], as is `weight`; both null for one side
  void* weight;     // double if `wide`, else float
  int64_t* starts;  // [rows + 1]
  bool* used;       // [rows], or null
  bool wide;
};
int entry_keys(const Entries& args, void* stream);
int arrange_entries(const Entries& args, void* stream);

// out[r] = the sum of weight[k] * grad[token[k]] for k from starts[row[r]] to starts[row[r] + 1]. Every kPiece entries
// that lie within one row are added up first, by threads of their own, so that no thread adds up a long row alone.
constexpr int64_t kPiece = 64;
struct SumRows {
  const void* grad;  // [tokens, D]
  int64_t columns;
  Format grad_format;
  const int32_t* key;
  const int64_t* token;
  const void* weight;  // or null: 1
  int64_t entries, rows;
  const int64_t* starts;
  const int64_t* row;  // [count], or null: all
  int64_t count;
  bool wide;      // sums in double
  void* partial;  // [entries / kPiece, D]: double if `wide`, else float
  void* out;      // [count, D]
  Format format;
};
int sum_rows(const SumRows& args, void* stream);

}  // namespace spurmix::cuda

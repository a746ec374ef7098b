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

}  // namespace spurmix::cuda

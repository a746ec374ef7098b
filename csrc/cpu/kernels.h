// CPU kernels on raw pointers, independent of torch. Each kernel processes a range [begin, end) of independent items,
// so the caller distributes items over threads. The caller checks arguments: indices are in range, shapes match.
#pragma once

#include <cstdint>

#include "../draw.h"
#include "../pixel.h"

namespace spurmix::cpu {
using spurmix::Format;

// Outputs of more bytes than this are written with streaming stores: a loader's ring of such buffers does not fit in
// the cache. This is a constant because the C library does not report the size of the last-level cache reliably: on
// virtual machines it reports nothing, or the sum of all sockets.
constexpr int64_t kStreamThreshold = int64_t{8} << 20;

// First k for which values[k] is outside [0, limit), or -1.
int64_t first_outside(const int64_t* values, int64_t count, int64_t limit);

// Items: samples. flip_bits may be null.
struct Draw {
  Tables tables;
  uint64_t seed, start;
  int64_t *index, *partner, *group;
  float* lam;
  uint32_t* flip_bits;
};
// Returns false if the contents of the tables are invalid. Some outputs are not written then.
bool draw(const Draw& args, int64_t begin, int64_t end);

// Item i is part i % parts of sample i / parts. A part is a range of pixels or of output rows of its sample.
struct MixImages {
  const uint8_t* images;
  int64_t image_stride;  // bytes
  int64_t height, width, channels;
  const int64_t *index, *partner;
  const float *lam, *mean, *std;
  const Box* boxes;      // [B, 2], or null
  const uint8_t* flips;  // [B, 2], or null
  int64_t out_height, out_width;
  void* out;
  Format format;
  bool channels_last;
  int64_t parts;
  bool stream;  // use streaming stores
};
void mix_images(const MixImages& args, int64_t begin, int64_t end);

// Items: samples.
struct MixRows {
  const void* rows;
  int64_t row_stride, columns;  // elements
  Format rows_format;
  const int64_t *index, *partner;
  const float* lam;
  void* out;
  Format format;
  bool stream;  // use streaming stores
};
void mix_rows(const MixRows& args, int64_t begin, int64_t end);

// Items: samples.
struct MixLabels {
  const int64_t *label, *partner_label;
  const float* lam;
  int64_t classes;
  void* out;
  Format format;
};
void mix_labels(const MixLabels& args, int64_t begin, int64_t end);

// Items: samples. `loss` and `logsumexp` are double for f64 logits, else float.
struct CrossEntropy {
  const void* logits;
  int64_t row_stride, classes;
  Format format;
  const int64_t *label, *partner_label;
  const float* lam;
  double label_smoothing;
  void *loss, *logsumexp;
};
void cross_entropy(const CrossEntropy& args, int64_t begin, int64_t end);

// Items: samples. Writes the loss, and its gradient times `factor`, but not logsumexp. Logits are f32 or f64.
struct CrossEntropyWithGrad {
  CrossEntropy forward;
  double factor;
  void* grad_logits;  // contiguous
};
void cross_entropy_with_grad(const CrossEntropyWithGrad& args, int64_t begin, int64_t end);

// Items: samples. Writes (softmax - target) * grad[item * grad_stride] * factor.
struct CrossEntropyBackward {
  const void* logits;
  int64_t row_stride, classes;
  Format format;
  const int64_t *label, *partner_label;
  const float* lam;
  double label_smoothing;
  const void *grad, *logsumexp;
  int64_t grad_stride;
  double factor;
  void* grad_logits;  // contiguous
};
void cross_entropy_backward(const CrossEntropyBackward& args, int64_t begin, int64_t end);

// Items: samples. Writes the position of the largest value of each row: the first one among equals, and the first NaN
// if there is one.
struct Argmax {
  const void* logits;
  int64_t row_stride, classes;
  Format format;
  int64_t* out;
};
void argmax(const Argmax& args, int64_t begin, int64_t end);

}  // namespace spurmix::cpu

// CPU kernels on raw pointers, free of torch. Each works on a range [begin, end) of independent items, so the caller
// decides about threads. Arguments are checked by the caller: indices in range, shapes consistent.
#pragma once

#include <cstdint>

#include "../draw.h"
#include "../pixel.h"

namespace spurmix::cpu {
using spurmix::Format;

// Outputs of more bytes than this are written past the caches, which could not hold a loader's ring of them anyway. A
// constant, as the C library reports the last-level cache of all sockets together, or nothing, on virtual machines.
constexpr int64_t kStreamThreshold = int64_t{8} << 20;

// Where `values[k]` first lies outside [0, limit), or -1.
int64_t first_outside(const int64_t* values, int64_t count, int64_t limit);

// Items: samples. flip_bits may be null.
struct Draw {
  Tables tables;
  uint64_t seed, start;
  int64_t *index, *partner, *group;
  float* lam;
  uint32_t* flip_bits;
};
void draw(const Draw& args, int64_t begin, int64_t end);

// Items: sample * parts + part, each part a run of pixels or output rows of its sample.
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
  bool stream;  // write past the caches
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
  bool stream;  // write past the caches
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

// Items: samples. `loss` and `logsumexp` are float, double for f64 logits.
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

// Items: samples. The loss of f32 and f64 logits and its gradient times `factor`; logsumexp is not written.
struct CrossEntropyWithGrad {
  CrossEntropy forward;
  double factor;
  void* grad_logits;  // contiguous
};
void cross_entropy_with_grad(const CrossEntropyWithGrad& args, int64_t begin, int64_t end);

// Items: samples. Writes (softmax - target) * scale; scale = grad[item * grad_stride] * factor.
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

// Items: samples. Position of the largest of each row, the first among equals; NaN counts as largest.
struct Argmax {
  const void* logits;
  int64_t row_stride, classes;
  Format format;
  int64_t* out;
};
void argmax(const Argmax& args, int64_t begin, int64_t end);

}  // namespace spurmix::cpu

// Range checks and parallel loops of the CPU operators.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../../cpu/kernels.h"
#include "../device.h"

namespace spurmix {
using torch::stable::parallel_for;

inline void check_range(const int64_t* values, int64_t count, int64_t limit, const char* op, const char* name) {
  const int64_t at = cpu::first_outside(values, count, limit);
  SPURMIX_CHECK(at < 0, op, ": ", name, "[", at, "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", limit, ")");
}

// Checks that the weights are in [0, 1]. NaN is not.
inline void check_lam(const Tensor& lam, const char* op) {
  const float* values = data<float>(lam);
  for (int64_t i = 0; i < lam.numel(); ++i) {
    SPURMIX_CHECK(values[i] >= 0 && values[i] <= 1, op, ": lam[", i, "] = ", values[i], " must be in [0, 1]");
  }
}

inline void check_range(const PairArguments& pairs, int64_t total, const char* op) {
  check_lam(pairs.lam, op);
  check_range(data<int64_t>(pairs.index), pairs.batch(), total, op, "index");
  check_range(data<int64_t>(pairs.partner), pairs.batch(), total, op, "partner");
}

inline void check_range(const LabelArguments& labels, int64_t classes, const char* op) {
  check_lam(labels.lam, op);
  check_range(data<int64_t>(labels.label), labels.batch(), classes, op, "label");
  check_range(data<int64_t>(labels.partner_label), labels.batch(), classes, op, "partner_label");
}

// Rows per task, so that a task has about `values` values.
inline int64_t row_grain(int64_t columns, int64_t values) {
  return std::max<int64_t>(1, values / std::max<int64_t>(1, columns));
}

// Samples of a sequence whose tables and counter are checked.
struct Sequence {
  Tables tables;
  uint64_t seed, start;
};

Sequence checked_sequence(const SequenceArguments& args, int64_t count, const char* op);

// `flip_bits` [count] may be null.
void draw_samples(const Sequence& sequence, const DrawOutputs& out, uint32_t* flip_bits, const char* op);

}  // namespace spurmix

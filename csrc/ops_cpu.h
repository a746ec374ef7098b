// What the CPU operators share beyond ops_common.h.
#pragma once

#define SPURMIX_HERE(tensor) (tensor).is_cpu()
#define SPURMIX_WHERE "on the CPU"

#include "cpu/kernels.h"
#include "ops_common.h"

namespace spurmix {
using torch::stable::parallel_for;

inline void check_range(const int64_t* values, int64_t count, int64_t limit, const char* op, const char* name) {
  const int64_t at = cpu::first_outside(values, count, limit);
  SPURMIX_CHECK(at < 0, op, ": ", name, "[", at, "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", limit, ")");
}

}  // namespace spurmix

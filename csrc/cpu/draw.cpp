#include <algorithm>

#include "isa.h"
#include "kernels.h"

#define SPURMIX_BODY "draw.inc"
#include "each_isa.h"

namespace spurmix::cpu {

int64_t first_outside(const int64_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(limit)) return i;
  }
  return -1;
}

bool draw(const Draw& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(draw(args, begin, end)) }

}  // namespace spurmix::cpu

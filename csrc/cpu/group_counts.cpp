#include <limits>

#include "isa.h"
#include "kernels.h"

#define SPURMIX_BODY "group_counts.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void argmax(const Argmax& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(argmax(args, begin, end)) }

}  // namespace spurmix::cpu

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "kernels.h"

#define SPURMIX_BODY "mix_rows.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void mix_rows(const MixRows& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(mix_rows(args, begin, end)) }

void mix_labels(const MixLabels& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(mix_labels(args, begin, end)) }

}  // namespace spurmix::cpu

#include <algorithm>
#include <vector>

#include "isa.h"
#include "kernels.h"

#define SPURMIX_BODY "mix_images.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void mix_images(const MixImages& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(mix_images(args, begin, end)) }

}  // namespace spurmix::cpu

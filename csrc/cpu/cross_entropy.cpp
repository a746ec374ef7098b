#include <algorithm>
#include <cmath>
#include <limits>

#include "isa.h"
#include "kernels.h"

#define SPURMIX_BODY "cross_entropy.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void cross_entropy(const CrossEntropy& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(cross_entropy(args, begin, end))
}

void cross_entropy_backward(const CrossEntropyBackward& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(cross_entropy_backward(args, begin, end))
}

void cross_entropy_with_grad(const CrossEntropyWithGrad& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(cross_entropy_with_grad(args, begin, end))
}

}  // namespace spurmix::cpu

#include "kernels.h"

namespace spurmix::cpu {

int64_t first_outside(const int64_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(limit)) return i;
  }
  return -1;
}

void draw(const Draw& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Drawn d = draw_sample(a.tables, a.seed, a.start + static_cast<uint64_t>(i));
    if (a.index) a.index[i] = d.index;
    if (a.partner) a.partner[i] = d.partner;
    if (a.group) a.group[i] = d.group;
    if (a.lam) a.lam[i] = d.lam;
    if (a.flip_bits) a.flip_bits[i] = d.flip_bits;
  }
}

}  // namespace spurmix::cpu

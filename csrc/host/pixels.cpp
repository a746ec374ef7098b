#include "pixels.h"

#include <cstring>

namespace spurmix::host {

void pack_rgb(const uint8_t* pixels, int64_t count, uint8_t* to) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {  // four pixels of four bytes become three words
    uint32_t p[4], w[3];
    std::memcpy(p, pixels + 4 * k, sizeof p);
    w[0] = (p[0] & 0xFFFFFF) | (p[1] << 24);
    w[1] = ((p[1] >> 8) & 0xFFFF) | (p[2] << 16);
    w[2] = ((p[2] >> 16) & 0xFF) | (p[3] << 8);
    std::memcpy(to + 3 * k, w, sizeof w);
  }
  for (; k < count; ++k) std::memcpy(to + 3 * k, pixels + 4 * k, 3);
}

}  // namespace spurmix::host

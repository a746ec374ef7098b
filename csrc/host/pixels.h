// Pixels of decoded images. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// The first three bytes of `count` pixels of four.
void pack_rgb(const uint8_t* pixels, int64_t count, uint8_t* to);

}  // namespace spurmix::host

// Pixels of decoded images. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// The first three bytes of `count` pixels of four. Returns the CRC-32 of what is written, after bytes of which it is
// `crc`.
uint32_t pack_rgb(const uint8_t* pixels, int64_t count, uint8_t* to, uint32_t crc);

}  // namespace spurmix::host

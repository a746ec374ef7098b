// Pixels of decoded images. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// Copies the first three of every four bytes of `count` pixels. Returns the CRC-32 `crc` of the preceding bytes,
// continued with the copied ones.
uint32_t pack_rgb(const uint8_t* pixels, int64_t count, uint8_t* to, uint32_t crc);

}  // namespace spurmix::host

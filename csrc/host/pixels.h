// Pixels of decoded images into a file. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// Writes `count` pixels of four bytes as their first three bytes, at byte `at` of a file. Returns 0 or an errno.
int write_rgb(int fd, int64_t at, const uint8_t* pixels, int64_t count);

}  // namespace spurmix::host

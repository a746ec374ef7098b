// CRC-32 as in zlib, PNG and Ethernet (reflected polynomial 0xEDB88320). Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// The CRC-32 of `size` bytes that follow bytes of which it is `crc`; 0 to begin with.
uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t size);

// The CRC-32 of bytes of which it is `first`, followed by `size` bytes of which it is `second`.
uint32_t crc32_joined(uint32_t first, uint32_t second, int64_t size);

// The CRC-32 of bytes [begin, begin + size) of a file, as far as it has them; how many those were in *count. Returns
// it, or sets *error to an errno.
uint32_t file_crc32(int fd, int64_t begin, int64_t size, int64_t* count, int* error);

}  // namespace spurmix::host

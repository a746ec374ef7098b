// CRC-32 as in zlib, PNG and Ethernet (reflected polynomial 0xEDB88320). Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// Continues the CRC-32 `crc` of the preceding bytes, 0 if there are none, with `size` bytes.
uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t size);

// The CRC-32 of two byte sequences in a row, from the CRC-32s of both and the size of the second.
uint32_t crc32_joined(uint32_t first, uint32_t second, int64_t size);

// The CRC-32 of bytes [begin, begin + size) of a file. *count is the number of these bytes that the file has. *error is
// 0 or an errno.
uint32_t file_crc32(int fd, int64_t begin, int64_t size, int64_t* count, int* error);

}  // namespace spurmix::host

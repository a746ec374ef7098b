// Rows of a file, read in parallel. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

// Reads rows `rows[k]` of `row_bytes` bytes, which begin at `begin` in the open file `fd`, to out + k * row_bytes. Rows
// that follow each other in the file and in `rows` are read at once. Threads beyond the number of cores are of use:
// each waits for a read of its own. Returns -1, or k of a row that could not be read, with why in *error (an errno, 0:
// the file ended before).
int64_t read_rows(int fd, int64_t begin, int64_t row_bytes, const int64_t* rows, int64_t count, int threads,
                  uint8_t* out, int* error);

}  // namespace spurmix::host

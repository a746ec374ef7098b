// Rows of a file, read in parallel. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

constexpr int64_t kPage = 4096;  // alignment of reads past the page cache, in the file and in memory

// Rows of `row_bytes` bytes from byte `begin` on. `direct` is the same file opened with O_DIRECT, or -1.
struct RowFile {
  int fd, direct;
  int64_t begin, row_bytes;
};

// Computes the position in memory of each of `rows`, which ascend. Returns the number of bytes of all of them. The
// memory is aligned to pages. Rows that are consecutive in the file are consecutive in memory. Without `direct`, all
// rows are contiguous in memory. With it, a run of rows occupies whole pages and has the same offset in its first page
// as in the file.
int64_t place_rows(const RowFile& file, const int64_t* rows, int64_t count, int64_t* places);

// Reads rows[k] to out + places[k], consecutive rows at once. Rows in the page cache are copied from it, others are
// read with `direct` if it is given. More threads than cores are useful, because each waits for its own read. Returns
// -1, or the k of a row that could not be read. *error is then an errno, or 0 if the file ends before the row.
int64_t read_rows(const RowFile& file, const int64_t* rows, const int64_t* places, int64_t count, int threads,
                  uint8_t* out, int* error);

}  // namespace spurmix::host

// Rows of a file, read in parallel. Free of Python and torch.
#pragma once

#include <cstdint>

namespace spurmix::host {

constexpr int64_t kPage = 4096;  // reads past the page cache begin, end and land on such boundaries

// Rows of `row_bytes` bytes that begin at `begin`. `direct`: the same file opened with O_DIRECT, or -1.
struct RowFile {
  int fd, direct;
  int64_t begin, row_bytes;
};

// Where each of `rows`, ascending, lands in memory that begins on a page; returns the bytes all of them take. Rows that
// follow each other in the file do so in memory. Without `direct` they lie one behind the other; with it each run of
// rows takes the whole pages it lies on, at the file's own offset in a page.
int64_t place_rows(const RowFile& file, const int64_t* rows, int64_t count, int64_t* places);

// Reads the rows to out + places[k]. Neighbours are read at once. What the page cache holds comes from there, anything
// else past it where the file was opened so. Threads beyond the number of cores are of use: each waits for a read of
// its own. Returns -1, or k of a row that could not be read, with why in *error (an errno, 0: the file ended before).
int64_t read_rows(const RowFile& file, const int64_t* rows, const int64_t* places, int64_t count, int threads,
                  uint8_t* out, int* error);

}  // namespace spurmix::host

// Stable parallel counting sort of rows by integer columns. Free of Python and torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace spurmix::host {

enum class Kind { i8, u8, i16, u16, i32, u32, i64, u64 };

struct Column {
  const char* data;
  int64_t stride;  // bytes
  Kind kind;
  int64_t low;
  uint64_t span;  // values are in [low, low + span)
};

struct Cells {
  // Ascending, without empty cells. The digits of a key are value - low of each column, the first one most significant.
  std::vector<uint64_t> keys;
  std::vector<int64_t> counts;
  bool identity;  // rows are already in cell order
};

// Sorts the rows 0 to count - 1 into `members`, int32 or int64 [count]. The first column is the most significant one.
// The product of the spans must be below 2^63. Throws std::out_of_range if a value is outside its column's range.
template <class Member>
Cells group_cells(const std::vector<Column>& columns, int64_t count, int threads, Member* members);

extern template Cells group_cells<int32_t>(const std::vector<Column>&, int64_t, int, int32_t*);
extern template Cells group_cells<int64_t>(const std::vector<Column>&, int64_t, int, int64_t*);

}  // namespace spurmix::host

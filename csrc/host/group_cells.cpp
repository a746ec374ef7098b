#include "group_cells.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "threads.h"

namespace spurmix::host {
namespace {

constexpr int64_t kBlock = 1 << 14;
constexpr uint64_t kDense = 1 << 20;  // histograms of up to this many possible cells are plain arrays

// Appends the digit of a column to each key. Returns the first row whose value is out of range, or -1.
template <class T>
int64_t append_key(const Column& column, int64_t first, int64_t count, uint64_t* keys) {
  const char* p = column.data + first * column.stride;
  const uint64_t low = static_cast<uint64_t>(column.low);
  for (int64_t i = 0; i < count; ++i, p += column.stride) {
    T value;
    std::memcpy(&value, p, sizeof(T));  // a field of a packed record may be unaligned
    const uint64_t digit = static_cast<uint64_t>(value) - low;
    if (digit >= column.span) return first + i;
    keys[i] = keys[i] * column.span + digit;
  }
  return -1;
}

int64_t append_key(const Column& column, int64_t first, int64_t count, uint64_t* keys) {
  switch (column.kind) {
    case Kind::i8: return append_key<int8_t>(column, first, count, keys);
    case Kind::u8: return append_key<uint8_t>(column, first, count, keys);
    case Kind::i16: return append_key<int16_t>(column, first, count, keys);
    case Kind::u16: return append_key<uint16_t>(column, first, count, keys);
    case Kind::i32: return append_key<int32_t>(column, first, count, keys);
    case Kind::u32: return append_key<uint32_t>(column, first, count, keys);
    case Kind::i64: return append_key<int64_t>(column, first, count, keys);
    case Kind::u64: return append_key<uint64_t>(column, first, count, keys);
  }
  return -1;
}

// Calls visit(first row, count, keys) for each block of the rows [begin, end).
template <class Visit>
void for_blocks(const std::vector<Column>& columns, int64_t begin, int64_t end, const Visit& visit) {
  std::vector<uint64_t> keys(kBlock);
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    std::fill(keys.begin(), keys.begin() + count, 0);
    for (size_t k = 0; k < columns.size(); ++k) {
      const int64_t bad = append_key(columns[k], first, count, keys.data());
      if (bad >= 0) {
        throw std::out_of_range("column " + std::to_string(k) + ", row " + std::to_string(bad) +
                                ": the value is outside the range of the column");
      }
    }
    visit(first, count, keys.data());
  }
}

// Calls work(part, begin, end) for equal parts of [0, count), each in a thread.
template <class Work>
void in_parts(int64_t count, int64_t parts, const Work& work) {
  parallel_for(parts, parts, [&](int64_t part) { work(part, count * part / parts, count * (part + 1) / parts); });
}

// Cell number of a key: the key itself if histograms are dense, else its rank among the keys that occur.
struct Numbering {
  bool dense;
  std::unordered_map<uint64_t, int64_t> rank;

  int64_t operator()(uint64_t key) const { return dense ? static_cast<int64_t>(key) : rank.find(key)->second; }
};

std::vector<uint64_t> distinct_keys(const std::vector<Column>& columns, int64_t count, int parts) {
  std::vector<std::vector<uint64_t>> found(parts);
  in_parts(count, parts, [&](int64_t part, int64_t begin, int64_t end) {
    std::unordered_map<uint64_t, bool> seen;
    for_blocks(columns, begin, end, [&](int64_t, int64_t n, const uint64_t* keys) {
      for (int64_t i = 0; i < n; ++i) seen.emplace(keys[i], true);
    });
    for (const auto& entry : seen) found[part].push_back(entry.first);
  });
  std::vector<uint64_t> all;
  for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace

template <class Member>
Cells group_cells(const std::vector<Column>& columns, int64_t count, int threads, Member* members) {
  uint64_t possible = 1;
  for (const Column& column : columns) possible *= column.span;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / kBlock));

  Numbering number = {possible <= kDense, {}};
  std::vector<uint64_t> keys;
  if (!number.dense) {
    keys = distinct_keys(columns, count, parts);
    for (size_t k = 0; k < keys.size(); ++k) number.rank.emplace(keys[k], static_cast<int64_t>(k));
  }
  const int64_t cells = number.dense ? static_cast<int64_t>(possible) : static_cast<int64_t>(keys.size());

  // next[part][cell] is first the number of the cell's rows in the part, then the position of its next row.
  std::vector<std::vector<int64_t>> next(parts, std::vector<int64_t>(cells, 0));
  in_parts(count, parts, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t* histogram = next[part].data();
    for_blocks(columns, begin, end, [&](int64_t, int64_t n, const uint64_t* k) {
      for (int64_t i = 0; i < n; ++i) ++histogram[number(k[i])];
    });
  });
  Cells result;
  int64_t position = 0;
  for (int64_t cell = 0; cell < cells; ++cell) {
    const int64_t start = position;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t size = next[part][cell];
      next[part][cell] = position;
      position += size;
    }
    if (position == start) continue;
    result.keys.push_back(number.dense ? static_cast<uint64_t>(cell) : keys[cell]);
    result.counts.push_back(position - start);
  }

  std::atomic<bool> moved{false};  // whether any row changes its position
  in_parts(count, parts, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t* position_of = next[part].data();
    bool any = false;
    for_blocks(columns, begin, end, [&](int64_t first, int64_t n, const uint64_t* k) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = position_of[number(k[i])]++;
        members[at] = static_cast<Member>(first + i);
        any |= at != first + i;
      }
    });
    if (any) moved = true;
  });
  result.identity = !moved;
  return result;
}

template Cells group_cells<int32_t>(const std::vector<Column>&, int64_t, int, int32_t*);
template Cells group_cells<int64_t>(const std::vector<Column>&, int64_t, int, int64_t*);

}  // namespace spurmix::host

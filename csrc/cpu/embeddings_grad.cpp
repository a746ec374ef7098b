#include <algorithm>
#include <cmath>

#include "embeddings.h"
#include "isa.h"

#define SPURMIX_BODY "embeddings_grad.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void sum_rows(const SumRows& args, int64_t begin, int64_t end) { SPURMIX_DISPATCH(sum_rows(args, begin, end)) }

void bert_backward(const BertBackward& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(bert_backward(args, begin, end))
}

namespace {

// Counting sort. `for_each` calls its argument with (row, entry) for all entries, in the same order each time.
template <class ForEach>
Buckets counting_sort(int64_t rows, const ForEach& for_each) {
  Buckets b;
  b.offsets.assign(static_cast<size_t>(rows) + 2, 0);
  int64_t* next = b.offsets.data() + 1;
  for_each([&](int64_t row, const Entry&) { ++next[row + 1]; });
  for (int64_t r = 0; r < rows; ++r) next[r + 1] += next[r];
  b.entries.resize(static_cast<size_t>(next[rows]));
  for_each([&](int64_t row, const Entry& entry) { b.entries[static_cast<size_t>(next[row]++)] = entry; });
  b.offsets.pop_back();  // next[row] is now the end of the row, so offsets[row] is its begin
  return b;
}

}  // namespace

Buckets sort_lookups(const Lookups& lookups, int64_t tokens, int64_t rows, int64_t padding) {
  return counting_sort(rows, [&](const auto& visit) {
    for (int64_t n = 0; n < tokens; ++n) {
      const double weight = lookups.weight<double>(n);
      if (weight != 0 && lookups.ids[n] != padding) visit(lookups.ids[n], Entry{n, weight});
    }
    for (int64_t n = 0; n < tokens; ++n) {
      const double weight = lookups.partner_weight<double>(n);
      if (weight != 0 && lookups.partner_ids[n] != padding) visit(lookups.partner_ids[n], Entry{n, weight});
    }
  });
}

Buckets sort_tokens(const int64_t* ids, int64_t tokens, int64_t rows) {
  return counting_sort(rows, [&](const auto& visit) {
    for (int64_t n = 0; n < tokens; ++n) visit(ids == nullptr ? 0 : ids[n], Entry{n, 1.0});
  });
}

std::vector<int64_t> drop_empty(Buckets* buckets) {
  std::vector<int64_t> kept;
  std::vector<int64_t>& offsets = buckets->offsets;
  for (int64_t r = 0; r < buckets->rows(); ++r) {
    if (offsets[r + 1] > offsets[r]) kept.push_back(r);
  }
  for (size_t k = 0; k < kept.size(); ++k) offsets[k] = offsets[kept[k]];  // kept[k] >= k
  offsets[kept.size()] = static_cast<int64_t>(buckets->entries.size());
  offsets.resize(kept.size() + 1);
  return kept;
}

// The work of a row counts like that of an entry.
int64_t Buckets::cut(int64_t part, int64_t parts) const {
  const int64_t work = rows() + offsets.back(), target = work / parts * part + work % parts * part / parts;
  int64_t low = 0, high = rows();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (offsets[middle] + middle < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return part == parts ? rows() : low;
}

int64_t Buckets::largest() const {
  int64_t most = 0;
  for (int64_t r = 0; r < rows(); ++r) most = std::max(most, offsets[r + 1] - offsets[r]);
  return most;
}

}  // namespace spurmix::cpu

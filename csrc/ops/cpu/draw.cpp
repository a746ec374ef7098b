#include <atomic>

#include "device.h"

namespace spurmix {

Sequence checked_sequence(const SequenceArguments& args, int64_t count, const char* op) {
  Sequence s;
  const char* problem = view_tables(data<int64_t>(args.tables), args.tables.numel(), &s.tables);
  SPURMIX_CHECK(problem == nullptr, op, ": tables: ", problem == nullptr ? "" : problem);
  SPURMIX_CHECK(valid_member_count(s.tables, args.members.numel()), op, ": members has ", args.members.numel(),
                " entries for tables of ", s.tables.num_examples, " examples");
  if (args.members.numel() > 0) {
    if (args.members.scalar_type() == ScalarType::Int) {
      s.tables.members32 = data<int32_t>(args.members);
    } else {
      s.tables.members64 = data<int64_t>(args.members);
    }
  }
  int64_t start = args.start;
  if (args.counter.has_value()) {
    const int64_t offset = *data<int64_t>(*args.counter);
    SPURMIX_CHECK(offset >= 0 && offset <= INT64_MAX - start, op, ": counter must be in [0, 2^63 - start), got ",
                  offset);
    start += offset;
    check_sequence(args.seed, start, count, op);
  }
  s.seed = static_cast<uint64_t>(args.seed);
  s.start = static_cast<uint64_t>(start);
  return s;
}

void draw_samples(const Sequence& s, const DrawOutputs& out, uint32_t* flip_bits, const char* op) {
  const cpu::Draw args = {s.tables,
                          s.seed,
                          s.start,
                          mutable_data<int64_t>(out.index),
                          mutable_data<int64_t>(out.partner),
                          mutable_data<int64_t>(out.group),
                          mutable_data<float>(out.lam),
                          flip_bits};
  std::atomic<bool> valid = true;
  parallel_for(0, out.count(), 512, [&](int64_t begin, int64_t end) {
    if (!cpu::draw(args, begin, end)) valid = false;
  });
  SPURMIX_CHECK(valid, op, ": tables: a section has values that draw tables cannot have");
}

void device::draw(const SequenceArguments& sequence, const DrawOutputs& out, const char* op) {
  draw_samples(checked_sequence(sequence, out.count(), op), out, nullptr, op);
}

}  // namespace spurmix

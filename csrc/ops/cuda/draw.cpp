#include "device.h"

namespace spurmix {

cuda::Sequence sequence_of(const SequenceArguments& args) {
  cuda::Sequence s = {};
  s.tables = data<int64_t>(args.tables);
  s.length = args.tables.numel();
  if (args.members.numel() > 0) {
    s.members = args.members.const_data_ptr();
    s.member_count = args.members.numel();
    s.member_size = args.members.scalar_type() == ScalarType::Int ? 4 : 8;
  }
  s.seed = static_cast<uint64_t>(args.seed);
  s.start = static_cast<uint64_t>(args.start);
  s.counter = data<int64_t>(args.counter);
  return s;
}

cuda::DrawOut draw_outputs(const DrawOutputs& out) {
  return {mutable_data<int64_t>(out.index), mutable_data<int64_t>(out.partner), mutable_data<int64_t>(out.group),
          mutable_data<float>(out.lam)};
}

void device::draw(const SequenceArguments& sequence, const DrawOutputs& out, const char* op) {
  const OnDevice device(sequence.tables, op);
  device.check_launch(
      cuda::draw(sequence_of(sequence), out.count(), draw_outputs(out), device.flag(), device.stream()));
}

}  // namespace spurmix

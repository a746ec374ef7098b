// The operators draw and draw_out.
#include "device.h"

namespace spurmix {
namespace {

void draw_out(const Tensor& tables, const Tensor& members, int64_t seed, int64_t start, const OptionalTensor& counter,
              Tensor index, Tensor partner, Tensor lam, Tensor group) {
  const char* op = "draw_out";
  const SequenceArguments sequence = {tables, members, seed, start, counter};
  const DrawOutputs out = {index, partner, lam, group};
  out.check(out.count(), op);
  sequence.check(out.count(), op);
  check_disjoint({{index, "index"}, {partner, "partner"}, {lam, "lam"}, {group, "group"}},
                 {{tables, "tables"}, {members, "members"}, {counter, "counter"}}, op);
  device::draw(sequence, out, op);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> draw(const Tensor& tables, const Tensor& members, int64_t seed,
                                                int64_t start, int64_t count, const OptionalTensor& counter) {
  const char* op = "draw";
  SPURMIX_CHECK(count >= 0, op, ": count must be 0 or more, got ", count);
  const SequenceArguments sequence = {tables, members, seed, start, counter};
  sequence.check(count, op);
  const DrawOutputs out = DrawOutputs::empty(tables, count);
  device::draw(sequence, out, op);
  return {out.index, out.partner, out.lam, out.group};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("draw", TORCH_BOX(&draw));
  m.impl("draw_out", TORCH_BOX(&draw_out));
}

}  // namespace spurmix

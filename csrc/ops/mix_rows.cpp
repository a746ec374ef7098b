// The operators mix_rows and mix_labels, and their _out forms.
#include "device.h"

namespace spurmix {
namespace {

void run_mix_rows(const Tensor& rows, const PairArguments& pairs, const Tensor& out, const char* op) {
  check_rows(rows, op, "rows", "[N, D]");
  pairs.check(op);
  check(out, op, "out", out.scalar_type(), {pairs.batch(), rows.size(1)});
  device::mix_rows(rows, pairs, out, op);
}

void mix_rows_out(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, Tensor out) {
  const char* op = "mix_rows_out";
  check_disjoint({{out, "out"}}, {{rows, "rows"}, {index, "index"}, {partner, "partner"}, {lam, "lam"}}, op);
  run_mix_rows(rows, {index, partner, lam}, out, op);
}

Tensor mix_rows(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, ScalarType dtype) {
  SPURMIX_CHECK(rows.dim() == 2, "mix_rows: rows must be [N, D]");
  Tensor out = fresh(rows, {index.numel(), rows.size(1)}, dtype);
  run_mix_rows(rows, {index, partner, lam}, out, "mix_rows");
  return out;
}

void run_mix_labels(const LabelArguments& labels, const Tensor& out, const char* op) {
  SPURMIX_CHECK(out.dim() == 2, op, ": out must be [B, classes]");
  labels.check(labels.batch(), op);
  check(out, op, "out", out.scalar_type(), {labels.batch(), out.size(1)});
  device::mix_labels(labels, out, op);
}

void mix_labels_out(const Tensor& label, const Tensor& partner_label, const Tensor& lam, Tensor out) {
  const char* op = "mix_labels_out";
  check_disjoint({{out, "out"}}, {{label, "label"}, {partner_label, "partner_label"}, {lam, "lam"}}, op);
  run_mix_labels({label, partner_label, lam}, out, op);
}

Tensor mix_labels(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t num_classes,
                  ScalarType dtype) {
  SPURMIX_CHECK(num_classes >= 1, "mix_labels: num_classes must be 1 or more, got ", num_classes);
  Tensor out = fresh(label, {label.numel(), num_classes}, dtype);
  run_mix_labels({label, partner_label, lam}, out, "mix_labels");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("mix_rows", TORCH_BOX(&mix_rows));
  m.impl("mix_rows_out", TORCH_BOX(&mix_rows_out));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_labels_out", TORCH_BOX(&mix_labels_out));
}

}  // namespace spurmix

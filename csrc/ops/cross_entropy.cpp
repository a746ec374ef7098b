// The operators mixed_cross_entropy, its gradient, and group_counts.
#include "device.h"

namespace spurmix {
namespace {

std::tuple<Tensor, Tensor> mixed_cross_entropy(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                               const Tensor& lam, int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy";
  const LossArguments args = {logits, {label, partner_label, lam}, reduction, label_smoothing};
  args.check(op);
  Tensor loss = args.empty_loss(), logsumexp = fresh(logits, {args.batch()}, args.type());
  device::cross_entropy(args, loss, logsumexp, op);
  return {loss, logsumexp};
}

std::tuple<Tensor, Tensor> mixed_cross_entropy_with_grad(const Tensor& logits, const Tensor& label,
                                                         const Tensor& partner_label, const Tensor& lam,
                                                         int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_with_grad";
  const LossArguments args = {logits, {label, partner_label, lam}, reduction, label_smoothing};
  args.check(op);
  Tensor loss = args.empty_loss(), grad_logits = fresh(logits, {args.batch(), logits.size(1)}, logits.scalar_type());
  device::cross_entropy_with_grad(args, loss, grad_logits, op);
  return {loss, grad_logits};
}

Tensor mixed_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& logsumexp,
                                    const Tensor& label, const Tensor& partner_label, const Tensor& lam,
                                    int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_backward";
  const LossArguments args = {logits, {label, partner_label, lam}, reduction, label_smoothing};
  args.check(op);
  args.check_gradient(grad, logsumexp, op);
  Tensor grad_logits = fresh(logits, {args.batch(), logits.size(1)}, logits.scalar_type());
  device::cross_entropy_backward(args, grad, logsumexp, grad_logits, op);
  return grad_logits;
}

void group_counts(const Tensor& logits, const Tensor& label, const Tensor& group, Tensor counts) {
  const CountArguments args = {logits, label, group, counts};
  const char* op = "group_counts";
  args.check(op);
  check_disjoint({{counts, "counts"}}, {{logits, "logits"}, {label, "label"}, {group, "group"}}, op);
  device::group_counts(args, op);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("mixed_cross_entropy", TORCH_BOX(&mixed_cross_entropy));
  m.impl("mixed_cross_entropy_with_grad", TORCH_BOX(&mixed_cross_entropy_with_grad));
  m.impl("mixed_cross_entropy_backward", TORCH_BOX(&mixed_cross_entropy_backward));
  m.impl("group_counts", TORCH_BOX(&group_counts));
}

}  // namespace spurmix

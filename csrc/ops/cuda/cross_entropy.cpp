#include "device.h"

namespace spurmix {
namespace {

// The kernel's arguments except for the outputs.
cuda::CrossEntropy loss_arguments(const LossArguments& args, const OnDevice& device, const char* op) {
  return {args.logits.const_data_ptr(),
          args.logits.stride(0),
          args.batch(),
          args.logits.size(1),
          format_of(args.logits, op, "logits"),
          data<int64_t>(args.labels.label),
          data<int64_t>(args.labels.partner_label),
          data<float>(args.labels.lam),
          args.label_smoothing,
          nullptr,
          nullptr,
          device.flag()};
}

}  // namespace

void device::cross_entropy(const LossArguments& args, const Tensor& loss, const Tensor& logsumexp, const char* op) {
  const int64_t batch = args.batch();
  const Tensor sample_losses = args.reduction == kNone ? loss : fresh(args.logits, {batch}, args.type());
  const OnDevice device(args.logits, op);
  cuda::CrossEntropy m = loss_arguments(args, device, op);
  m.loss = sample_losses.mutable_data_ptr();
  m.logsumexp = logsumexp.mutable_data_ptr();
  device.check_launch(cuda::cross_entropy(m, device.stream()));
  if (args.reduction == kNone) return;
  // As in torch, the mean of an empty batch is NaN.
  const double factor = args.reduction == kMean && batch == 0 ? std::nan("") : args.factor();
  device.check_launch(cuda::reduce_loss(sample_losses.const_data_ptr(), batch, factor, format_of(loss, op, "loss"),
                                        loss.mutable_data_ptr(), device.stream()));
}

void device::cross_entropy_backward(const LossArguments& args, const Tensor& grad, const Tensor& logsumexp,
                                    const Tensor& grad_logits, const char* op) {
  const OnDevice device(args.logits, op);
  cuda::CrossEntropyBackward m = {loss_arguments(args, device, op), grad.const_data_ptr(),
                                  args.reduction == kNone ? grad.stride(0) : 0, args.factor(),
                                  grad_logits.mutable_data_ptr()};
  m.forward.logsumexp = const_cast<void*>(logsumexp.const_data_ptr());  // the kernel only reads it
  device.check_launch(cuda::cross_entropy_backward(m, device.stream()));
}

void device::cross_entropy_with_grad(const LossArguments& args, const Tensor& loss, const Tensor& grad_logits,
                                     const char* op) {
  const Tensor logsumexp = fresh(args.logits, {args.batch()}, args.type());
  cross_entropy(args, loss, logsumexp, op);
  Tensor ones = torch::stable::empty_like(loss);
  torch::stable::fill_(ones, 1.0);
  cross_entropy_backward(args, ones, logsumexp, grad_logits, op);
}

void device::group_counts(const CountArguments& args, const char* op) {
  const OnDevice device(args.logits, op);
  const bool membership = args.membership();
  const cuda::GroupCounts m = {args.logits.const_data_ptr(),
                               args.logits.stride(0),
                               args.logits.size(0),
                               args.logits.size(1),
                               format_of(args.logits, op, "logits"),
                               data<int64_t>(args.label),
                               membership ? nullptr : data<int64_t>(args.group),
                               membership ? data<bool>(args.group) : nullptr,
                               args.counts.size(0),
                               mutable_data<int64_t>(args.counts),
                               device.flag()};
  device.check_launch(cuda::group_counts(m, device.stream()));
}

}  // namespace spurmix

// CUDA operators on rows: features, labels, the loss, counts. Argument checks, outputs, launches.
#include "ops_cuda.h"

#include <tuple>

namespace spurmix {
namespace {

// ---- rows and labels

void mix_rows_into(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& out,
                   const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(rows) && rows.dim() == 2, op, ": rows must be [N, D] ", SPURMIX_WHERE);
  SPURMIX_CHECK(rows.size(1) <= 1 || rows.stride(1) == 1, op, ": each row must be contiguous");
  const int64_t batch = index.numel(), columns = rows.size(1);
  check_pairs(index, partner, lam, batch, op);
  check(out, op, "out", out.scalar_type(), {batch, columns});
  const OnDevice device(rows, op);
  const cuda::MixRows m = {rows.const_data_ptr(),
                           rows.stride(0),
                           rows.size(0),
                           columns,
                           format_of(rows.scalar_type(), op, "rows"),
                           batch,
                           data<int64_t>(index),
                           data<int64_t>(partner),
                           data<float>(lam),
                           out.mutable_data_ptr(),
                           format_of(out.scalar_type(), op, "out"),
                           device.flag()};
  device.launched(cuda::mix_rows(m, device.stream()));
}

void mix_rows_out(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, Tensor out) {
  mix_rows_into(rows, index, partner, lam, out, "mix_rows_out");
}

Tensor mix_rows(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, ScalarType dtype) {
  SPURMIX_CHECK(rows.dim() == 2, "mix_rows: rows must be [N, D]");
  Tensor out = fresh(rows, {index.numel(), rows.size(1)}, dtype);
  mix_rows_into(rows, index, partner, lam, out, "mix_rows");
  return out;
}

void mix_labels_into(const Tensor& label, const Tensor& partner_label, const Tensor& lam, const Tensor& out,
                     const char* op) {
  SPURMIX_CHECK(out.dim() == 2, op, ": out must be [B, classes]");
  const int64_t batch = label.numel(), classes = out.size(1);
  check_label_pairs(label, partner_label, lam, batch, op);
  check(out, op, "out", out.scalar_type(), {batch, classes});
  const OnDevice device(label, op);
  const cuda::MixLabels m = {data<int64_t>(label),
                             data<int64_t>(partner_label),
                             data<float>(lam),
                             batch,
                             classes,
                             out.mutable_data_ptr(),
                             format_of(out.scalar_type(), op, "out"),
                             device.flag()};
  device.launched(cuda::mix_labels(m, device.stream()));
}

void mix_labels_out(const Tensor& label, const Tensor& partner_label, const Tensor& lam, Tensor out) {
  mix_labels_into(label, partner_label, lam, out, "mix_labels_out");
}

Tensor mix_labels(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t num_classes,
                  ScalarType dtype) {
  SPURMIX_CHECK(num_classes >= 1, "mix_labels: num_classes must be 1 or more");
  Tensor out = fresh(label, {label.numel(), num_classes}, dtype);
  mix_labels_into(label, partner_label, lam, out, "mix_labels");
  return out;
}

// ---- loss

cuda::CrossEntropy loss_arguments(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                  const Tensor& lam, double label_smoothing, const char* op) {
  check_logits(logits, op);
  const int64_t batch = logits.size(0);
  check_label_pairs(label, partner_label, lam, batch, op);
  return {logits.const_data_ptr(),
          logits.stride(0),
          batch,
          logits.size(1),
          format_of(logits.scalar_type(), op, "logits"),
          data<int64_t>(label),
          data<int64_t>(partner_label),
          data<float>(lam),
          label_smoothing,
          nullptr,
          nullptr,
          nullptr};
}

std::tuple<Tensor, Tensor> mixed_cross_entropy(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                               const Tensor& lam, int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy";
  cuda::CrossEntropy args = loss_arguments(logits, label, partner_label, lam, label_smoothing, op);
  const int64_t batch = args.batch;
  const Tensor each = fresh(logits, {batch}, loss_type(logits)), logsumexp = fresh(logits, {batch}, loss_type(logits));
  const OnDevice device(logits, op);
  args.loss = each.mutable_data_ptr();
  args.logsumexp = logsumexp.mutable_data_ptr();
  args.flag = device.flag();
  device.launched(cuda::cross_entropy(args, device.stream()));
  if (reduction == kNone) return {each, logsumexp};
  const Tensor loss = fresh(logits, {}, loss_type(logits));
  // The mean of no losses is NaN, as torch has it.
  const double factor = reduction == kMean && batch == 0 ? std::nan("") : loss_factor(reduction, batch);
  device.launched(cuda::reduce_loss(each.const_data_ptr(), batch, factor, is_wide(logits) ? Format::f64 : Format::f32,
                                    loss.mutable_data_ptr(), device.stream()));
  return {loss, logsumexp};
}

Tensor mixed_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& logsumexp,
                                    const Tensor& label, const Tensor& partner_label, const Tensor& lam,
                                    int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_backward";
  cuda::CrossEntropyBackward args = {loss_arguments(logits, label, partner_label, lam, label_smoothing, op), nullptr, 0,
                                     loss_factor(reduction, logits.size(0)), nullptr};
  check_loss_gradient(grad, logits, logsumexp, reduction, op);
  const OnDevice device(logits, op);
  Tensor out = fresh(logits, {args.forward.batch, args.forward.classes}, logits.scalar_type());
  args.forward.logsumexp = const_cast<void*>(logsumexp.const_data_ptr());  // only read here
  args.forward.flag = device.flag();
  args.grad = grad.const_data_ptr();
  args.grad_stride = reduction == kNone ? grad.stride(0) : 0;
  args.grad_logits = out.mutable_data_ptr();
  device.launched(cuda::cross_entropy_backward(args, device.stream()));
  return out;
}

// An upstream gradient of ones, as the loss has it.
Tensor ones_like(const Tensor& loss) {
  Tensor ones = torch::stable::empty_like(loss);
  torch::stable::fill_(ones, 1.0);
  return ones;
}

std::tuple<Tensor, Tensor> mixed_cross_entropy_with_grad(const Tensor& logits, const Tensor& label,
                                                         const Tensor& partner_label, const Tensor& lam,
                                                         int64_t reduction, double label_smoothing) {
  const auto [loss, logsumexp] = mixed_cross_entropy(logits, label, partner_label, lam, reduction, label_smoothing);
  return {loss, mixed_cross_entropy_backward(ones_like(loss), logits, logsumexp, label, partner_label, lam, reduction,
                                             label_smoothing)};
}

void group_counts(const Tensor& logits, const Tensor& label, const Tensor& group, Tensor counts) {
  const char* op = "group_counts";
  check_logits(logits, op);
  const int64_t batch = logits.size(0);
  const bool membership = check_counts(label, group, counts, batch, op);
  const OnDevice device(logits, op);
  const cuda::GroupCounts m = {logits.const_data_ptr(),
                               logits.stride(0),
                               batch,
                               logits.size(1),
                               format_of(logits.scalar_type(), op, "logits"),
                               data<int64_t>(label),
                               membership ? nullptr : data<int64_t>(group),
                               membership ? data<bool>(group) : nullptr,
                               counts.size(0),
                               mutable_data<int64_t>(counts),
                               device.flag()};
  device.launched(cuda::group_counts(m, device.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("mix_rows", TORCH_BOX(&mix_rows));
  m.impl("mix_rows_out", TORCH_BOX(&mix_rows_out));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_labels_out", TORCH_BOX(&mix_labels_out));
  m.impl("mixed_cross_entropy", TORCH_BOX(&mixed_cross_entropy));
  m.impl("mixed_cross_entropy_with_grad", TORCH_BOX(&mixed_cross_entropy_with_grad));
  m.impl("mixed_cross_entropy_backward", TORCH_BOX(&mixed_cross_entropy_backward));
  m.impl("group_counts", TORCH_BOX(&group_counts));
}

}  // namespace spurmix

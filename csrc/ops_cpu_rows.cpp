// CPU operators on rows: features, labels, the loss, counts. Argument checks, outputs, threads; the arithmetic is in
// cpu/.
#include "ops_cpu.h"

#include <cstddef>
#include <memory>
#include <tuple>

namespace spurmix {
namespace {

// ---- rows and labels

void mix_rows_into(const Tensor& rows, const Tensor& index, const Tensor& partner, const Tensor& lam, const Tensor& out,
                   const char* op) {
  SPURMIX_CHECK(rows.is_cpu() && rows.dim() == 2, op, ": rows must be [N, D] on the CPU");
  SPURMIX_CHECK(rows.size(1) <= 1 || rows.stride(1) == 1, op, ": each row must be contiguous");
  const int64_t batch = index.numel(), total = rows.size(0), columns = rows.size(1);
  check_pairs(index, partner, lam, batch, op);
  check(out, op, "out", out.scalar_type(), {batch, columns});
  check_range(data<int64_t>(index), batch, total, op, "index");
  check_range(data<int64_t>(partner), batch, total, op, "partner");
  const cpu::MixRows m = {rows.const_data_ptr(),
                          rows.stride(0),
                          columns,
                          format_of(rows.scalar_type(), op, "rows"),
                          data<int64_t>(index),
                          data<int64_t>(partner),
                          data<float>(lam),
                          out.mutable_data_ptr(),
                          format_of(out.scalar_type(), op, "out"),
                          batch * columns * 4 > cpu::kStreamThreshold};
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
  parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) { cpu::mix_rows(m, begin, end); });
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

void check_labels(const Tensor& label, const Tensor& partner_label, const Tensor& lam, int64_t batch, int64_t classes,
                  const char* op) {
  check_label_pairs(label, partner_label, lam, batch, op);
  check_range(data<int64_t>(label), batch, classes, op, "label");
  check_range(data<int64_t>(partner_label), batch, classes, op, "partner_label");
}

void mix_labels_into(const Tensor& label, const Tensor& partner_label, const Tensor& lam, const Tensor& out,
                     const char* op) {
  SPURMIX_CHECK(out.dim() == 2, op, ": out must be [B, classes]");
  const int64_t batch = label.numel(), classes = out.size(1);
  check_labels(label, partner_label, lam, batch, classes, op);
  check(out, op, "out", out.scalar_type(), {batch, classes});
  const cpu::MixLabels m = {data<int64_t>(label),   data<int64_t>(partner_label),           data<float>(lam), classes,
                            out.mutable_data_ptr(), format_of(out.scalar_type(), op, "out")};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, classes));
  parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) { cpu::mix_labels(m, begin, end); });
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

int64_t loss_grain(int64_t classes) { return std::max<int64_t>(1, 8192 / classes); }

template <class T>
void reduce(const T* values, int64_t count, int64_t reduction, T* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  *out = static_cast<T>(reduction == kMean ? sum / static_cast<double>(count) : sum);
}

// The arguments but for the outputs, checked.
cpu::CrossEntropy loss_arguments(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                 const Tensor& lam, double label_smoothing, const char* op) {
  check_logits(logits, op);
  check_labels(label, partner_label, lam, logits.size(0), logits.size(1), op);
  return {logits.const_data_ptr(),
          logits.stride(0),
          logits.size(1),
          format_of(logits.scalar_type(), op, "logits"),
          data<int64_t>(label),
          data<int64_t>(partner_label),
          data<float>(lam),
          label_smoothing,
          nullptr,
          nullptr};
}

// A loss for each sample and what is returned of them: themselves, or one number.
class Losses {
 public:
  Losses(const Tensor& logits, int64_t reduction)
      : batch_(logits.size(0)), reduction_(reduction), wide_(is_wide(logits)) {
    result_ = reduction == kNone ? fresh(logits, {batch_}, loss_type(logits)) : fresh(logits, {}, loss_type(logits));
    if (reduction != kNone) scratch_ = std::make_unique<std::byte[]>(batch_ * sizeof(double));
  }

  void* each() const { return scratch_ ? scratch_.get() : result_.mutable_data_ptr(); }

  Tensor reduced() const {
    if (scratch_ && wide_) {
      reduce(reinterpret_cast<const double*>(scratch_.get()), batch_, reduction_, mutable_data<double>(result_));
    } else if (scratch_) {
      reduce(reinterpret_cast<const float*>(scratch_.get()), batch_, reduction_, mutable_data<float>(result_));
    }
    return result_;
  }

 private:
  int64_t batch_, reduction_;
  bool wide_;
  Tensor result_;
  std::unique_ptr<std::byte[]> scratch_;
};

std::tuple<Tensor, Tensor> mixed_cross_entropy(const Tensor& logits, const Tensor& label, const Tensor& partner_label,
                                               const Tensor& lam, int64_t reduction, double label_smoothing) {
  cpu::CrossEntropy args = loss_arguments(logits, label, partner_label, lam, label_smoothing, "mixed_cross_entropy");
  const int64_t batch = logits.size(0);
  const Losses losses(logits, reduction);
  const Tensor logsumexp = fresh(logits, {batch}, loss_type(logits));
  args.loss = losses.each();
  args.logsumexp = logsumexp.mutable_data_ptr();
  parallel_for(0, batch, loss_grain(args.classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy(args, begin, end); });
  return {losses.reduced(), logsumexp};
}

std::tuple<Tensor, Tensor> mixed_cross_entropy_with_grad(const Tensor& logits, const Tensor& label,
                                                         const Tensor& partner_label, const Tensor& lam,
                                                         int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_with_grad";
  const int64_t batch = logits.size(0);
  SPURMIX_CHECK(logits.scalar_type() == loss_type(logits), op, ": logits must be float32 or float64");
  cpu::CrossEntropyWithGrad args = {loss_arguments(logits, label, partner_label, lam, label_smoothing, op),
                                    loss_factor(reduction, batch), nullptr};
  const Losses losses(logits, reduction);
  const Tensor grad = fresh(logits, {batch, args.forward.classes}, logits.scalar_type());
  args.forward.loss = losses.each();
  args.grad_logits = grad.mutable_data_ptr();
  parallel_for(0, batch, loss_grain(args.forward.classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy_with_grad(args, begin, end); });
  return {losses.reduced(), grad};
}

Tensor mixed_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& logsumexp,
                                    const Tensor& label, const Tensor& partner_label, const Tensor& lam,
                                    int64_t reduction, double label_smoothing) {
  const char* op = "mixed_cross_entropy_backward";
  check_logits(logits, op);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  check_labels(label, partner_label, lam, batch, classes, op);
  const cpu::Format format = format_of(logits.scalar_type(), op, "logits");
  check_loss_gradient(grad, logits, logsumexp, reduction, op);
  const bool each = reduction == kNone;
  Tensor out = fresh(logits, {batch, classes}, logits.scalar_type());
  const cpu::CrossEntropyBackward m = {logits.const_data_ptr(),
                                       logits.stride(0),
                                       classes,
                                       format,
                                       data<int64_t>(label),
                                       data<int64_t>(partner_label),
                                       data<float>(lam),
                                       label_smoothing,
                                       grad.const_data_ptr(),
                                       logsumexp.const_data_ptr(),
                                       each ? grad.stride(0) : 0,
                                       loss_factor(reduction, batch),
                                       out.mutable_data_ptr()};
  parallel_for(0, batch, loss_grain(classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy_backward(m, begin, end); });
  return out;
}

void group_counts(const Tensor& logits, const Tensor& label, const Tensor& group, Tensor counts) {
  const char* op = "group_counts";
  check_logits(logits, op);
  const int64_t batch = logits.size(0);
  const bool membership = check_counts(label, group, counts, batch, op);
  const int64_t groups = counts.size(0);
  if (!membership) {
    const int64_t* g = data<int64_t>(group);
    for (int64_t i = 0; i < batch; ++i) {
      SPURMIX_CHECK(g[i] >= -1 && g[i] < groups, op, ": group[", i, "] = ", g[i], " is out of range [-1, ", groups,
                    ")");
    }
  }
  std::vector<int64_t> best(batch);
  const cpu::Argmax m = {logits.const_data_ptr(), logits.stride(0), logits.size(1),
                         format_of(logits.scalar_type(), op, "logits"), best.data()};
  parallel_for(0, batch, loss_grain(m.classes), [&](int64_t begin, int64_t end) { cpu::argmax(m, begin, end); });
  int64_t* total = mutable_data<int64_t>(counts);
  const int64_t* y = data<int64_t>(label);
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t correct = best[i] == y[i];
    const auto add = [&](int64_t g) {
      total[2 * g] += correct;
      total[2 * g + 1] += 1;
    };
    if (!membership) {
      const int64_t g = data<int64_t>(group)[i];
      if (g >= 0) add(g);
      continue;
    }
    const bool* in = data<bool>(group) + i * groups;
    for (int64_t g = 0; g < groups; ++g) {
      if (in[g]) add(g);
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spurmix, CPU, m) {
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

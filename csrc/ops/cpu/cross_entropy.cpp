#include <cstddef>
#include <memory>
#include <vector>

#include "device.h"

namespace spurmix {
namespace {

int64_t loss_grain(int64_t classes) { return row_grain(classes, 8192); }

template <class T>
void reduce(const T* values, int64_t count, int64_t reduction, T* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  *out = static_cast<T>(reduction == kMean ? sum / static_cast<double>(count) : sum);
}

// One loss per sample: in `loss` itself, or in memory that `reduce` adds up.
class SampleLosses {
 public:
  SampleLosses(const LossArguments& args, const Tensor& loss) : args_(args), loss_(loss) {
    if (args.reduction != kNone) scratch_ = std::make_unique<std::byte[]>(args.batch() * sizeof(double));
  }

  void* get() const { return scratch_ ? scratch_.get() : loss_.mutable_data_ptr(); }

  void reduce() const {
    if (scratch_ == nullptr) return;
    if (args_.type() == ScalarType::Double) {
      reduce_as<double>();
    } else {
      reduce_as<float>();
    }
  }

 private:
  template <class T>
  void reduce_as() const {
    spurmix::reduce(reinterpret_cast<const T*>(scratch_.get()), args_.batch(), args_.reduction, mutable_data<T>(loss_));
  }

  const LossArguments& args_;
  const Tensor& loss_;
  std::unique_ptr<std::byte[]> scratch_;
};

// The kernel's arguments except for the outputs.
cpu::CrossEntropy loss_arguments(const LossArguments& args, const char* op) {
  const Tensor& logits = args.logits;
  check_range(args.labels, logits.size(1), op);
  return {logits.const_data_ptr(),
          logits.stride(0),
          logits.size(1),
          format_of(logits, op, "logits"),
          data<int64_t>(args.labels.label),
          data<int64_t>(args.labels.partner_label),
          data<float>(args.labels.lam),
          args.label_smoothing,
          nullptr,
          nullptr};
}

}  // namespace

void device::cross_entropy(const LossArguments& args, const Tensor& loss, const Tensor& logsumexp, const char* op) {
  cpu::CrossEntropy m = loss_arguments(args, op);
  const SampleLosses losses(args, loss);
  m.loss = losses.get();
  m.logsumexp = logsumexp.mutable_data_ptr();
  parallel_for(0, args.batch(), loss_grain(m.classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy(m, begin, end); });
  losses.reduce();
}

void device::cross_entropy_with_grad(const LossArguments& args, const Tensor& loss, const Tensor& grad_logits,
                                     const char* op) {
  SPURMIX_CHECK(args.logits.scalar_type() == args.type(), op, ": logits must be float32 or float64");
  cpu::CrossEntropyWithGrad m = {loss_arguments(args, op), args.factor(), grad_logits.mutable_data_ptr()};
  const SampleLosses losses(args, loss);
  m.forward.loss = losses.get();
  parallel_for(0, args.batch(), loss_grain(m.forward.classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy_with_grad(m, begin, end); });
  losses.reduce();
}

void device::cross_entropy_backward(const LossArguments& args, const Tensor& grad, const Tensor& logsumexp,
                                    const Tensor& grad_logits, const char* op) {
  const cpu::CrossEntropy f = loss_arguments(args, op);
  const cpu::CrossEntropyBackward m = {f.logits,
                                       f.row_stride,
                                       f.classes,
                                       f.format,
                                       f.label,
                                       f.partner_label,
                                       f.lam,
                                       f.label_smoothing,
                                       grad.const_data_ptr(),
                                       logsumexp.const_data_ptr(),
                                       args.reduction == kNone ? grad.stride(0) : 0,
                                       args.factor(),
                                       grad_logits.mutable_data_ptr()};
  parallel_for(0, args.batch(), loss_grain(m.classes),
               [&](int64_t begin, int64_t end) { cpu::cross_entropy_backward(m, begin, end); });
}

void device::group_counts(const CountArguments& args, const char* op) {
  const Tensor& logits = args.logits;
  const int64_t batch = logits.size(0), groups = args.counts.size(0);
  const bool membership = args.membership();
  const int64_t* group = membership ? nullptr : data<int64_t>(args.group);
  const bool* member = membership ? data<bool>(args.group) : nullptr;
  for (int64_t i = 0; i < batch && !membership; ++i) {
    SPURMIX_CHECK(group[i] >= -1 && group[i] < groups, op, ": group[", i, "] = ", group[i], " is out of range [-1, ",
                  groups, ")");
  }
  std::vector<int64_t> best(batch);
  const cpu::Argmax m = {logits.const_data_ptr(), logits.stride(0), logits.size(1), format_of(logits, op, "logits"),
                         best.data()};
  parallel_for(0, batch, loss_grain(m.classes), [&](int64_t begin, int64_t end) { cpu::argmax(m, begin, end); });
  int64_t* counts = mutable_data<int64_t>(args.counts);
  const int64_t* label = data<int64_t>(args.label);
  for (int64_t i = 0; i < batch; ++i) {
    const auto add = [&](int64_t g) {
      counts[2 * g] += best[i] == label[i];
      counts[2 * g + 1] += 1;
    };
    if (!membership) {
      if (group[i] >= 0) add(group[i]);
      continue;
    }
    for (int64_t g = 0; g < groups; ++g) {
      if (member[i * groups + g]) add(g);
    }
  }
}

}  // namespace spurmix

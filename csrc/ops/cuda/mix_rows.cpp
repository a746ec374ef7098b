#include "device.h"

namespace spurmix {

void device::mix_rows(const Tensor& rows, const PairArguments& pairs, const Tensor& out, const char* op) {
  const OnDevice device(rows, op);
  const cuda::MixRows m = {rows.const_data_ptr(),
                           rows.stride(0),
                           rows.size(0),
                           rows.size(1),
                           format_of(rows, op, "rows"),
                           pairs.batch(),
                           data<int64_t>(pairs.index),
                           data<int64_t>(pairs.partner),
                           data<float>(pairs.lam),
                           out.mutable_data_ptr(),
                           format_of(out, op, "out"),
                           device.flag()};
  device.check_launch(cuda::mix_rows(m, device.stream()));
}

void device::mix_labels(const LabelArguments& labels, const Tensor& out, const char* op) {
  const OnDevice device(labels.label, op);
  const cuda::MixLabels m = {data<int64_t>(labels.label),
                             data<int64_t>(labels.partner_label),
                             data<float>(labels.lam),
                             labels.batch(),
                             out.size(1),
                             out.mutable_data_ptr(),
                             format_of(out, op, "out"),
                             device.flag()};
  device.check_launch(cuda::mix_labels(m, device.stream()));
}

}  // namespace spurmix

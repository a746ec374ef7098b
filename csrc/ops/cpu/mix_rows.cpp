#include "device.h"

namespace spurmix {

void device::mix_rows(const Tensor& rows, const PairArguments& pairs, const Tensor& out, const char* op) {
  const int64_t batch = pairs.batch(), columns = rows.size(1);
  check_range(pairs, rows.size(0), op);
  const cpu::MixRows m = {rows.const_data_ptr(),
                          rows.stride(0),
                          columns,
                          format_of(rows, op, "rows"),
                          data<int64_t>(pairs.index),
                          data<int64_t>(pairs.partner),
                          data<float>(pairs.lam),
                          out.mutable_data_ptr(),
                          format_of(out, op, "out"),
                          batch * columns * 4 > cpu::kStreamThreshold};
  parallel_for(0, batch, row_grain(columns, 16384), [&](int64_t begin, int64_t end) { cpu::mix_rows(m, begin, end); });
}

void device::mix_labels(const LabelArguments& labels, const Tensor& out, const char* op) {
  const int64_t classes = out.size(1);
  check_range(labels, classes, op);
  const cpu::MixLabels m = {data<int64_t>(labels.label), data<int64_t>(labels.partner_label),
                            data<float>(labels.lam),     classes,
                            out.mutable_data_ptr(),      format_of(out, op, "out")};
  parallel_for(0, labels.batch(), row_grain(classes, 32768),
               [&](int64_t begin, int64_t end) { cpu::mix_labels(m, begin, end); });
}

}  // namespace spurmix

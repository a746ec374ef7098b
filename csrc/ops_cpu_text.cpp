// CPU operators on token embeddings. Argument checks, outputs, threads; the arithmetic is in cpu/text.inc.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/text.h"
#include "ops_cpu.h"
#include "ops_text.h"

namespace spurmix {
namespace {

// Of a matrix whose shape is checked.
void check_ids(const Tensor& ids, const char* name, int64_t rows, const char* op) {
  const int64_t* values = data<int64_t>(ids);
  const int64_t length = ids.size(1), at = cpu::first_outside(values, ids.numel(), rows);
  SPURMIX_CHECK(at < 0, op, ": ", name, "[", at < 0 ? 0 : at / length, ", ", at < 0 ? 0 : at % length,
                "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", rows, ")");
}

cpu::Lookups lookups_of(const Tensor& ids, const Tensor& partner_ids, const Tensor& lam, const OptionalTensor& mask,
                        const OptionalTensor& partner_mask, int64_t rows, const char* op) {
  check_lookups(ids, partner_ids, lam, mask, partner_mask, op);
  check_ids(ids, "ids", rows, op);
  check_ids(partner_ids, "partner_ids", rows, op);
  return {data<int64_t>(ids), data<int64_t>(partner_ids), data<float>(lam),
          mask_data(mask),    mask_data(partner_mask),    ids.size(1)};
}

int64_t token_grain(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

bool streams(const Tensor& out) {
  return out.numel() * static_cast<int64_t>(out.element_size()) > cpu::kStreamThreshold;
}

}  // namespace

// ---- mix_embeddings

void mix_embeddings_into(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                         const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& out,
                         const char* op) {
  check_table(weight, op);
  const cpu::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, weight.size(0), op);
  const int64_t columns = weight.size(1);
  check(out, op, "out", out.scalar_type(), {ids.size(0), ids.size(1), columns});
  const cpu::MixEmbeddings m = {weight.const_data_ptr(),
                                weight.stride(0),
                                columns,
                                format_of(weight.scalar_type(), op, "weight"),
                                lookups,
                                out.mutable_data_ptr(),
                                format_of(out.scalar_type(), op, "out"),
                                streams(out)};
  parallel_for(0, ids.numel(), token_grain(columns),
               [&](int64_t begin, int64_t end) { cpu::mix_embeddings(m, begin, end); });
}

// ---- its gradient

namespace {

// out[r] = the sum of the rows of `grad` [tokens, D] in bucket r. Rows are shared out by their entries; where one holds
// more than a thread's share, columns are as well. Each sum has one order, however it is shared out.
void sum_into(const void* grad, cpu::Format grad_format, const cpu::Buckets& buckets, const Tensor& out,
              const char* op) {
  const int64_t columns = out.size(1), threads = torch::stable::get_num_threads();
  if (out.numel() == 0) return;
  const int64_t work = buckets.rows() + static_cast<int64_t>(buckets.entries.size());
  const int64_t blocks = (columns + 63) / 64;
  const int64_t across = buckets.largest() * threads > work ? std::min(threads, blocks) : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(4 * threads, work * columns / 16384));
  const cpu::SumRows whole = {grad,
                              columns,
                              grad_format,
                              buckets.offsets.data(),
                              buckets.entries.data(),
                              out.mutable_data_ptr(),
                              format_of(out.scalar_type(), op, "grad_weight"),
                              streams(out),
                              0,
                              columns};
  parallel_for(0, across * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / parts, part = item % parts;
      cpu::SumRows m = whole;
      m.first_column = blocks * block / across * 64;
      m.last_column = std::min(columns, blocks * (block + 1) / across * 64);
      cpu::sum_rows(m, buckets.cut(part, parts), buckets.cut(part + 1, parts));
    }
  });
}

}  // namespace

void mix_embeddings_backward_into(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                                  const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t padding_idx,
                                  const Tensor& out, const char* op) {
  check_grad(grad, ids, op);
  const int64_t rows = out.size(0);
  check(out, op, "grad_weight", out.scalar_type(), {rows, grad.size(2)});
  const cpu::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, rows, op);
  const cpu::Buckets buckets = cpu::sort_lookups(lookups, ids.numel(), rows, padding_idx);
  sum_into(grad.const_data_ptr(), format_of(grad.scalar_type(), op, "grad"), buckets, out, op);
}

namespace {

std::tuple<Tensor, Tensor> mix_embeddings_backward_rows(const Tensor& grad, const Tensor& ids,
                                                        const Tensor& partner_ids, const Tensor& lam,
                                                        const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                                        int64_t padding_idx, int64_t rows, ScalarType dtype) {
  const char* op = "mix_embeddings_backward_rows";
  check_grad(grad, ids, op);
  SPURMIX_CHECK(rows >= 0, op, ": rows must be 0 or more");
  const cpu::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, rows, op);
  cpu::Buckets buckets = cpu::sort_lookups(lookups, ids.numel(), rows, padding_idx);
  const std::vector<int64_t> kept = cpu::drop_empty(&buckets);
  const int64_t count = static_cast<int64_t>(kept.size());
  Tensor row = fresh(grad, {count}, ScalarType::Long), values = fresh(grad, {count, grad.size(2)}, dtype);
  std::copy(kept.begin(), kept.end(), mutable_data<int64_t>(row));
  sum_into(grad.const_data_ptr(), format_of(grad.scalar_type(), op, "grad"), buckets, values, op);
  return {row, values};
}

// ---- BERT's embedding block

// The arguments of both passes, checked; norm_bias, eps, out, mean and rstd are left to the caller.
cpu::BertEmbeddings bert_arguments(const Tensor& weight, const Tensor& position_weight,
                                   const OptionalTensor& type_weight, const Tensor& norm_weight, const Tensor& ids,
                                   const Tensor& partner_ids, const Tensor& lam, const OptionalTensor& mask,
                                   const OptionalTensor& partner_mask, const Tensor& position_ids,
                                   const OptionalTensor& token_type_ids, const char* op) {
  check_table(weight, op);
  cpu::BertEmbeddings m = {};
  m.lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, weight.size(0), op);
  check_bert(weight, position_weight, type_weight, norm_weight, ids, position_ids, token_type_ids, op);
  m.weight = weight.const_data_ptr();
  m.row_stride = weight.stride(0);
  m.columns = weight.size(1);
  m.table_format = format_of(weight.scalar_type(), op, "weight");
  check_ids(position_ids, "position_ids", position_weight.size(0), op);
  m.position_weight = position_weight.const_data_ptr();
  m.position_ids = data<int64_t>(position_ids);
  if (type_weight.has_value()) {
    m.type_weight = type_weight->const_data_ptr();
    if (token_type_ids.has_value()) {
      check_ids(*token_type_ids, "token_type_ids", type_weight->size(0), op);
      m.token_type_ids = data<int64_t>(*token_type_ids);
    }
  }
  m.norm_weight = norm_weight.const_data_ptr();
  return m;
}

std::tuple<Tensor, Tensor, Tensor> mix_bert_embeddings(const Tensor& weight, const Tensor& position_weight,
                                                       const OptionalTensor& type_weight, const Tensor& norm_weight,
                                                       const Tensor& norm_bias, const Tensor& ids,
                                                       const Tensor& partner_ids, const Tensor& lam,
                                                       const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                                       const Tensor& position_ids, const OptionalTensor& token_type_ids,
                                                       double eps, int64_t, ScalarType dtype) {
  const char* op = "mix_bert_embeddings";
  cpu::BertEmbeddings m = bert_arguments(weight, position_weight, type_weight, norm_weight, ids, partner_ids, lam, mask,
                                         partner_mask, position_ids, token_type_ids, op);
  check(norm_bias, op, "norm_bias", weight.scalar_type(), {m.columns});
  const int64_t batch = ids.size(0), length = ids.size(1);
  Tensor out = fresh(weight, {batch, length, m.columns}, dtype);
  const ScalarType wide = wide_type(weight.scalar_type(), weight.scalar_type());
  Tensor mean = fresh(weight, {batch, length}, wide), rstd = fresh(weight, {batch, length}, wide);
  m.norm_bias = norm_bias.const_data_ptr();
  m.eps = eps;
  m.out = out.mutable_data_ptr();
  m.format = format_of(dtype, op, "out");
  m.stream = streams(out);
  m.mean = mean.mutable_data_ptr();
  m.rstd = rstd.mutable_data_ptr();
  parallel_for(0, batch * length, token_grain(m.columns),
               [&](int64_t begin, int64_t end) { cpu::bert_embeddings(m, begin, end); });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_bert_embeddings_backward(
    const Tensor& grad, const Tensor& weight, const Tensor& position_weight, const OptionalTensor& type_weight,
    const Tensor& norm_weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
    const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& position_ids,
    const OptionalTensor& token_type_ids, const Tensor& mean, const Tensor& rstd) {
  const char* op = "mix_bert_embeddings_backward";
  check_grad(grad, ids, op);
  cpu::BertBackward b = {bert_arguments(weight, position_weight, type_weight, norm_weight, ids, partner_ids, lam, mask,
                                        partner_mask, position_ids, token_type_ids, op)};
  const int64_t batch = ids.size(0), length = ids.size(1), tokens = batch * length, columns = b.forward.columns;
  SPURMIX_CHECK(grad.size(2) == columns, op, ": grad must have ", columns, " columns");
  const ScalarType type = weight.scalar_type(), wide = wide_type(type, type);
  check(mean, op, "mean", wide, {batch, length});
  check(rstd, op, "rstd", wide, {batch, length});
  // Chunks do not depend on the number of threads, so neither do the sums.
  b.tokens = tokens;
  b.chunk = std::max<int64_t>(32, (tokens + 255) / 256);
  const int64_t chunks = (tokens + b.chunk - 1) / b.chunk;
  Tensor grad_mixed = fresh(grad, {batch, length, columns}, wide), partial = fresh(grad, {chunks, 2, columns}, wide);
  b.forward.mean = mean.mutable_data_ptr();
  b.forward.rstd = rstd.mutable_data_ptr();
  b.grad = grad.const_data_ptr();
  b.grad_format = format_of(grad.scalar_type(), op, "grad");
  b.grad_mixed = grad_mixed.mutable_data_ptr();
  b.partial = partial.mutable_data_ptr();
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) { cpu::bert_backward(b, begin, end); });

  const cpu::Format format = format_of(wide, op, "grad");
  Tensor positions = fresh(grad, {position_weight.size(0), columns}, type);
  sum_into(b.grad_mixed, format, cpu::sort_tokens(b.forward.position_ids, tokens, positions.size(0)), positions, op);
  Tensor types = fresh(grad, {type_weight.has_value() ? type_weight->size(0) : 0, columns}, type);
  if (types.size(0) > 0) {
    sum_into(b.grad_mixed, format, cpu::sort_tokens(b.forward.token_type_ids, tokens, types.size(0)), types, op);
  }
  const auto norm = [&](int64_t first) {  // even rows of `partial` belong to norm_weight, odd ones to norm_bias
    cpu::Buckets every_other = {{0, chunks}, {}};
    for (int64_t k = 0; k < chunks; ++k) every_other.entries.push_back({2 * k + first, 1.0});
    Tensor out = fresh(grad, {1, columns}, type);
    sum_into(b.partial, format, every_other, out, op);
    return torch::stable::select(out, 0, 0);
  };
  return {grad_mixed, positions, types, norm(0), norm(1)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spurmix, CPU, m) {
  m.impl("mix_embeddings", TORCH_BOX(&mix_embeddings));
  m.impl("mix_embeddings_out", TORCH_BOX(&mix_embeddings_out));
  m.impl("mix_embeddings_backward", TORCH_BOX(&mix_embeddings_backward));
  m.impl("mix_embeddings_backward_out", TORCH_BOX(&mix_embeddings_backward_out));
  m.impl("mix_embeddings_backward_rows", TORCH_BOX(&mix_embeddings_backward_rows));
  m.impl("mix_bert_embeddings", TORCH_BOX(&mix_bert_embeddings));
  m.impl("mix_bert_embeddings_backward", TORCH_BOX(&mix_bert_embeddings_backward));
}

}  // namespace spurmix

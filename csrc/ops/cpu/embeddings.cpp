#include <vector>

#include "../../cpu/embeddings.h"
#include "device.h"

namespace spurmix {
namespace {

// `ids` is a matrix whose shape is checked.
void check_ids(const Tensor& ids, const char* name, int64_t rows, const char* op) {
  const int64_t* values = data<int64_t>(ids);
  const int64_t length = ids.size(1), at = cpu::first_outside(values, ids.numel(), rows);
  SPURMIX_CHECK(at < 0, op, ": ", name, "[", at < 0 ? 0 : at / length, ", ", at < 0 ? 0 : at % length,
                "] = ", at < 0 ? 0 : values[at], " is out of range [0, ", rows, ")");
}

cpu::Lookups lookups_of(const TokenArguments& tokens, int64_t rows, const char* op) {
  check_ids(tokens.ids, "ids", rows, op);
  check_ids(tokens.partner_ids, "partner_ids", rows, op);
  check_lam(tokens.lam, op);
  return {data<int64_t>(tokens.ids), data<int64_t>(tokens.partner_ids), data<float>(tokens.lam),
          data<bool>(tokens.mask),   data<bool>(tokens.partner_mask),   tokens.length()};
}

int64_t token_grain(int64_t columns) { return row_grain(columns, 16384); }

bool streams(const Tensor& out) {
  return out.numel() * static_cast<int64_t>(out.element_size()) > cpu::kStreamThreshold;
}

// out[r] = the sum of the rows of `grad` [tokens, D] in bucket r. Threads share the rows by number of entries. If one
// row has more than a thread's share, they share the columns too. Neither changes the order of a sum.
void sum_buckets(const void* grad, Format grad_format, const cpu::Buckets& buckets, const Tensor& out, const char* op) {
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
                              format_of(out, op, "grad_weight"),
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

// The arguments of both passes. The caller sets norm_bias, eps, out, mean and rstd.
cpu::BertEmbeddings bert_arguments(const BertArguments& args, const char* op) {
  check_ids(args.position_ids, "position_ids", args.position_weight.size(0), op);
  if (args.types() > 0 && args.token_type_ids.has_value()) {
    check_ids(*args.token_type_ids, "token_type_ids", args.types(), op);
  }
  cpu::BertEmbeddings m = {};
  args.set(&m);
  m.lookups = lookups_of(args.tokens, args.weight.size(0), op);
  m.weight = args.weight.const_data_ptr();
  m.row_stride = args.weight.stride(0);
  m.columns = args.columns();
  m.table_format = format_of(args.weight, op, "weight");
  return m;
}

}  // namespace

void device::mix_embeddings(const Tensor& weight, const TokenArguments& tokens, const Tensor& out, const char* op) {
  const int64_t columns = weight.size(1);
  const cpu::MixEmbeddings m = {weight.const_data_ptr(),
                                weight.stride(0),
                                columns,
                                format_of(weight, op, "weight"),
                                lookups_of(tokens, weight.size(0), op),
                                out.mutable_data_ptr(),
                                format_of(out, op, "out"),
                                streams(out)};
  parallel_for(0, tokens.ids.numel(), token_grain(columns),
               [&](int64_t begin, int64_t end) { cpu::mix_embeddings(m, begin, end); });
}

void device::mix_embeddings_backward(const Tensor& grad, const TokenArguments& tokens, int64_t padding_idx,
                                     const Tensor& grad_weight, const char* op) {
  const int64_t rows = grad_weight.size(0);
  const cpu::Buckets buckets = cpu::sort_lookups(lookups_of(tokens, rows, op), tokens.ids.numel(), rows, padding_idx);
  sum_buckets(grad.const_data_ptr(), format_of(grad, op, "grad"), buckets, grad_weight, op);
}

std::tuple<Tensor, Tensor> device::mix_embeddings_backward_rows(const Tensor& grad, const TokenArguments& tokens,
                                                                int64_t padding_idx, int64_t rows, ScalarType dtype,
                                                                const char* op) {
  cpu::Buckets buckets = cpu::sort_lookups(lookups_of(tokens, rows, op), tokens.ids.numel(), rows, padding_idx);
  const std::vector<int64_t> nonzero = cpu::drop_empty(&buckets);
  const int64_t count = static_cast<int64_t>(nonzero.size());
  Tensor row = fresh(grad, {count}, ScalarType::Long), values = fresh(grad, {count, grad.size(2)}, dtype);
  std::copy(nonzero.begin(), nonzero.end(), mutable_data<int64_t>(row));
  sum_buckets(grad.const_data_ptr(), format_of(grad, op, "grad"), buckets, values, op);
  return {row, values};
}

void device::mix_bert_embeddings(const BertArguments& args, const Tensor& norm_bias, double eps, const Tensor& out,
                                 const Tensor& mean, const Tensor& rstd, const char* op) {
  cpu::BertEmbeddings m = bert_arguments(args, op);
  m.norm_bias = norm_bias.const_data_ptr();
  m.eps = eps;
  m.out = out.mutable_data_ptr();
  m.format = format_of(out, op, "out");
  m.stream = streams(out);
  m.mean = mean.mutable_data_ptr();
  m.rstd = rstd.mutable_data_ptr();
  parallel_for(0, args.tokens.ids.numel(), token_grain(m.columns),
               [&](int64_t begin, int64_t end) { cpu::bert_embeddings(m, begin, end); });
}

std::tuple<Tensor, Tensor> device::mix_bert_embeddings_backward(const BertArguments& args, const Tensor& grad,
                                                                const Tensor& mean, const Tensor& rstd,
                                                                const BertGradients& out, const char* op) {
  cpu::BertBackward b = {bert_arguments(args, op)};
  const int64_t tokens = args.tokens.ids.numel(), columns = args.columns();
  // The number of chunks, and so the sums, do not depend on the number of threads.
  b.tokens = tokens;
  b.chunk = std::max<int64_t>(32, (tokens + 255) / 256);
  const int64_t chunks = (tokens + b.chunk - 1) / b.chunk;
  const Tensor partial = fresh(grad, {chunks, 2, columns}, wide_type(args.weight));
  b.forward.mean = mean.mutable_data_ptr();
  b.forward.rstd = rstd.mutable_data_ptr();
  b.grad = grad.const_data_ptr();
  b.grad_format = format_of(grad, op, "grad");
  b.grad_mixed = out.mixed.mutable_data_ptr();
  b.partial = partial.mutable_data_ptr();
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) { cpu::bert_backward(b, begin, end); });

  const Format format = format_of(partial, op, "grad");
  const auto sum_tokens = [&](const int64_t* ids, const Tensor& table) {
    if (table.size(0) == 0) return;
    sum_buckets(b.grad_mixed, format, cpu::sort_tokens(ids, tokens, table.size(0)), table, op);
  };
  sum_tokens(b.forward.position_ids, out.positions);
  sum_tokens(b.forward.token_type_ids, out.types);
  const auto norm = [&](int64_t first) {  // even rows of `partial` belong to norm_weight, odd ones to norm_bias
    cpu::Buckets every_other = {{0, chunks}, {}};
    for (int64_t k = 0; k < chunks; ++k) every_other.entries.push_back({2 * k + first, 1.0});
    Tensor sum = fresh(grad, {1, columns}, args.weight.scalar_type());
    sum_buckets(b.partial, format, every_other, sum, op);
    return torch::stable::select(sum, 0, 0);
  };
  return {norm(0), norm(1)};
}

}  // namespace spurmix

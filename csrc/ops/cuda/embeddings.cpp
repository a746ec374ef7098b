#include <array>

#include "device.h"

namespace spurmix {
namespace {

cuda::Lookups lookups_of(const TokenArguments& tokens) {
  return {data<int64_t>(tokens.ids),
          data<int64_t>(tokens.partner_ids),
          data<float>(tokens.lam),
          data<bool>(tokens.mask),
          data<bool>(tokens.partner_mask),
          tokens.ids.numel(),
          tokens.length()};
}

cuda::MixEmbeddings word_arguments(const Tensor& weight, const TokenArguments& tokens, const OnDevice& device,
                                   const char* op) {
  cuda::MixEmbeddings m = {};
  m.weight = weight.const_data_ptr();
  m.row_stride = weight.stride(0);
  m.total = weight.size(0);
  m.columns = weight.size(1);
  m.table_format = format_of(weight, op, "weight");
  m.lookups = lookups_of(tokens);
  m.error_flag = device.flag();
  return m;
}

// The arguments of both passes. The caller sets norm_bias, eps and the outputs.
cuda::BertEmbeddings bert_arguments(const BertArguments& args, const OnDevice& device, const char* op) {
  cuda::BertEmbeddings m = {};
  args.set(&m);
  m.words = word_arguments(args.weight, args.tokens, device, op);
  m.positions = args.position_weight.size(0);
  m.types = args.types();
  return m;
}

// The keys in ascending order, and the former position of each. The sort is stable.
std::tuple<Tensor, Tensor> sorted(const Tensor& key) {
  std::array<StableIValue, 4> stack = {torch::stable::detail::from(key),
                                       torch::stable::detail::from(std::optional<bool>(true)),
                                       torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Positions of the true entries of a bool vector, int64. Waits for the device.
Tensor nonzero(const Tensor& vector) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(vector)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::nonzero", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::select(torch::stable::detail::to<Tensor>(stack[0]), 1, 0);
}

// The tokens that looked up each of `rows` rows, in the order that sum_rows expects. If `lookups` has no partners,
// every token has the weight 1.
struct SortedLookups {
  Tensor key, token, starts;
  OptionalTensor weight, used;
  int64_t rows;

  SortedLookups(const cuda::Lookups& lookups, int64_t count, int64_t padding_idx, ScalarType wide, bool with_used,
                const Tensor& like, const OnDevice& device, const char* op)
      : key(fresh(like, {0}, ScalarType::Int)), token(key), starts(key), rows(count) {
    SPURMIX_CHECK(rows >= 0 && rows < INT32_MAX, op, ": rows must be in [0, 2^31 - 1), got ", rows);
    const bool pairs = lookups.partner_ids != nullptr;
    cuda::Entries e = {};
    e.lookups = lookups;
    e.count = pairs ? 2 * lookups.tokens : lookups.tokens;
    e.rows = rows;
    e.padding_idx = padding_idx;
    e.error_flag = device.flag();
    e.wide = wide == ScalarType::Double;
    const Tensor unsorted = fresh(like, {e.count}, ScalarType::Int);
    e.key = mutable_data<int32_t>(unsorted);
    device.check_launch(cuda::entry_keys(e, device.stream()));
    std::tie(key, token) = sorted(unsorted);
    const Tensor order = token;
    starts = fresh(like, {rows + 1}, ScalarType::Long);
    e.key = mutable_data<int32_t>(key);
    e.order = data<int64_t>(order);
    e.starts = mutable_data<int64_t>(starts);
    if (pairs) {
      token = fresh(like, {e.count}, ScalarType::Long);
      weight = fresh(like, {e.count}, wide);
      e.token = mutable_data<int64_t>(token);
      e.weight = weight->mutable_data_ptr();
    }
    if (with_used) {
      used = fresh(like, {rows}, ScalarType::Bool);
      e.used = mutable_data<bool>(*used);
    }
    device.check_launch(cuda::arrange_entries(e, device.stream()));
  }

  // Sums `grad` [tokens, D] by row into `out`: all rows, or those in `row`.
  void sum(const Tensor& grad, ScalarType wide, const OptionalTensor& row, const Tensor& out, const OnDevice& device,
           const char* op) const {
    const int64_t columns = out.size(1), entries = key.numel();
    const Tensor partial = fresh(grad, {entries / cuda::kPiece, columns}, wide);
    const cuda::SumRows m = {grad.const_data_ptr(),
                             columns,
                             format_of(grad, op, "grad"),
                             data<int32_t>(key),
                             data<int64_t>(token),
                             weight.has_value() ? weight->const_data_ptr() : nullptr,
                             entries,
                             rows,
                             data<int64_t>(starts),
                             data<int64_t>(row),
                             out.size(0),
                             wide == ScalarType::Double,
                             partial.mutable_data_ptr(),
                             out.mutable_data_ptr(),
                             format_of(out, op, "grad_weight")};
    device.check_launch(cuda::sum_rows(m, device.stream()));
  }
};

}  // namespace

void device::mix_embeddings(const Tensor& weight, const TokenArguments& tokens, const Tensor& out, const char* op) {
  const OnDevice device(weight, op);
  cuda::MixEmbeddings m = word_arguments(weight, tokens, device, op);
  m.out = out.mutable_data_ptr();
  m.format = format_of(out, op, "out");
  device.check_launch(cuda::mix_embeddings(m, device.stream()));
}

void device::mix_embeddings_backward(const Tensor& grad, const TokenArguments& tokens, int64_t padding_idx,
                                     const Tensor& grad_weight, const char* op) {
  const OnDevice device(grad, op);
  const ScalarType wide = wide_type(grad.scalar_type(), grad_weight.scalar_type());
  const SortedLookups entries(lookups_of(tokens), grad_weight.size(0), padding_idx, wide, false, grad, device, op);
  entries.sum(grad, wide, std::nullopt, grad_weight, device, op);
}

std::tuple<Tensor, Tensor> device::mix_embeddings_backward_rows(const Tensor& grad, const TokenArguments& tokens,
                                                                int64_t padding_idx, int64_t rows, ScalarType dtype,
                                                                const char* op) {
  const OnDevice device(grad, op);
  const ScalarType wide = wide_type(grad.scalar_type(), dtype);
  const SortedLookups entries(lookups_of(tokens), rows, padding_idx, wide, true, grad, device, op);
  const Tensor row = nonzero(*entries.used);
  Tensor values = fresh(grad, {row.size(0), grad.size(2)}, dtype);
  entries.sum(grad, wide, row, values, device, op);
  return {row, values};
}

void device::mix_bert_embeddings(const BertArguments& args, const Tensor& norm_bias, double eps, const Tensor& out,
                                 const Tensor& mean, const Tensor& rstd, const char* op) {
  const OnDevice device(args.weight, op);
  cuda::BertEmbeddings m = bert_arguments(args, device, op);
  m.words.out = out.mutable_data_ptr();
  m.words.format = format_of(out, op, "out");
  m.norm_bias = norm_bias.const_data_ptr();
  m.eps = eps;
  m.mean = mean.mutable_data_ptr();
  m.rstd = rstd.mutable_data_ptr();
  device.check_launch(cuda::bert_embeddings(m, device.stream()));
}

std::tuple<Tensor, Tensor> device::mix_bert_embeddings_backward(const BertArguments& args, const Tensor& grad,
                                                                const Tensor& mean, const Tensor& rstd,
                                                                const BertGradients& out, const char* op) {
  const OnDevice device(grad, op);
  const int64_t tokens = args.tokens.ids.numel(), columns = args.columns();
  const ScalarType type = args.weight.scalar_type(), wide = wide_type(args.weight);
  const int64_t chunks = (tokens + cuda::kBertChunk - 1) / cuda::kBertChunk;
  const Tensor partial = fresh(grad, {chunks, 2, columns}, wide);
  cuda::BertBackward b = {bert_arguments(args, device, op)};
  b.forward.mean = const_cast<void*>(mean.const_data_ptr());  // the kernel only reads mean and rstd
  b.forward.rstd = const_cast<void*>(rstd.const_data_ptr());
  b.grad = grad.const_data_ptr();
  b.grad_format = format_of(grad, op, "grad");
  b.grad_mixed = out.mixed.mutable_data_ptr();
  b.partial = partial.mutable_data_ptr();
  device.check_launch(cuda::bert_backward(b, device.stream()));

  const auto sum_tokens = [&](const int64_t* ids, const Tensor& table) {
    if (table.size(0) == 0) return;
    cuda::Lookups each = {};
    each.ids = ids;
    each.tokens = tokens;
    const SortedLookups entries(each, table.size(0), -1, wide, false, grad, device, op);
    entries.sum(out.mixed, wide, std::nullopt, table, device, op);
  };
  sum_tokens(b.forward.position_ids, out.positions);
  sum_tokens(b.forward.token_type_ids, out.types);
  const auto norm = [&](int64_t which) {
    const int64_t first[] = {0};
    return torch::stable::to(torch::stable::sum(torch::stable::select(partial, 1, which), first), type);
  };
  return {norm(0), norm(1)};
}

}  // namespace spurmix

// CUDA operators on token embeddings. Argument checks, outputs, launches; keys are sorted by torch's own stable sort.
#include "ops_cuda.h"

#include <array>
#include <tuple>

#include "ops_text.h"

namespace spurmix {
namespace {

cuda::Lookups lookups_of(const Tensor& ids, const Tensor& partner_ids, const Tensor& lam, const OptionalTensor& mask,
                         const OptionalTensor& partner_mask, const char* op) {
  check_lookups(ids, partner_ids, lam, mask, partner_mask, op);
  return {data<int64_t>(ids), data<int64_t>(partner_ids), data<float>(lam),
          mask_data(mask),    mask_data(partner_mask),    ids.numel(),
          ids.size(1)};
}

}  // namespace

// ---- mix_embeddings

void mix_embeddings_into(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                         const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& out,
                         const char* op) {
  check_table(weight, op);
  const cuda::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, op);
  const int64_t columns = weight.size(1);
  check(out, op, "out", out.scalar_type(), {ids.size(0), ids.size(1), columns});
  const OnDevice device(weight, op);
  const cuda::MixEmbeddings m = {weight.const_data_ptr(),
                                 weight.stride(0),
                                 weight.size(0),
                                 columns,
                                 format_of(weight.scalar_type(), op, "weight"),
                                 lookups,
                                 out.mutable_data_ptr(),
                                 format_of(out.scalar_type(), op, "out"),
                                 device.flag()};
  device.launched(cuda::mix_embeddings(m, device.stream()));
}

// ---- gradients of tables

namespace {

// The sorted keys, and where each came from.
std::tuple<Tensor, Tensor> sorted(const Tensor& key) {
  std::array<StableIValue, 4> stack = {torch::stable::detail::from(key),
                                       torch::stable::detail::from(std::optional<bool>(true)),
                                       torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Where a bool vector is true, int64. Waits for the device.
Tensor nonzero(const Tensor& vector) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(vector)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::nonzero", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::select(torch::stable::detail::to<Tensor>(stack[0]), 1, 0);
}

// The tokens that looked up each of `rows` rows, as sum_rows takes them. Where `lookups` have no partners, every token
// has the weight 1.
struct Sorted {
  Tensor key, token, starts;
  OptionalTensor weight, used;
  int64_t rows;

  Sorted(const cuda::Lookups& lookups, int64_t count, int64_t padding_idx, ScalarType wide, bool with_used,
         const Tensor& like, const OnDevice& device, const char* op)
      : key(fresh(like, {0}, ScalarType::Int)), token(key), starts(key), rows(count) {
    SPURMIX_CHECK(rows >= 0 && rows < INT32_MAX, op, ": rows must lie in [0, 2^31 - 1)");
    const bool pairs = lookups.partner_ids != nullptr;
    cuda::Entries e = {};
    e.lookups = lookups;
    e.count = pairs ? 2 * lookups.tokens : lookups.tokens;
    e.rows = rows;
    e.padding_idx = padding_idx;
    e.flag = device.flag();
    e.wide = wide == ScalarType::Double;
    const Tensor unsorted = fresh(like, {e.count}, ScalarType::Int);
    e.key = mutable_data<int32_t>(unsorted);
    device.launched(cuda::entry_keys(e, device.stream()));
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
    device.launched(cuda::arrange_entries(e, device.stream()));
  }

  // Writes the sums of `grad` [tokens, D] for all rows, or for those of `row`, to `out`.
  void sum(const Tensor& grad, ScalarType wide, const OptionalTensor& row, const Tensor& out, const OnDevice& device,
           const char* op) const {
    const int64_t columns = out.size(1), entries = key.numel();
    const Tensor partial = fresh(grad, {entries / cuda::kPiece, columns}, wide);
    const cuda::SumRows m = {grad.const_data_ptr(),
                             columns,
                             format_of(grad.scalar_type(), op, "grad"),
                             data<int32_t>(key),
                             data<int64_t>(token),
                             weight.has_value() ? weight->const_data_ptr() : nullptr,
                             entries,
                             rows,
                             data<int64_t>(starts),
                             row.has_value() ? data<int64_t>(*row) : nullptr,
                             out.size(0),
                             wide == ScalarType::Double,
                             partial.mutable_data_ptr(),
                             out.mutable_data_ptr(),
                             format_of(out.scalar_type(), op, "grad_weight")};
    device.launched(cuda::sum_rows(m, device.stream()));
  }
};

}  // namespace

void mix_embeddings_backward_into(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                                  const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t padding_idx,
                                  const Tensor& out, const char* op) {
  check_grad(grad, ids, op);
  check(out, op, "grad_weight", out.scalar_type(), {out.size(0), grad.size(2)});
  const cuda::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, op);
  const OnDevice device(grad, op);
  const ScalarType wide = wide_type(grad.scalar_type(), out.scalar_type());
  const Sorted entries(lookups, out.size(0), padding_idx, wide, false, grad, device, op);
  entries.sum(grad, wide, std::nullopt, out, device, op);
}

namespace {

std::tuple<Tensor, Tensor> mix_embeddings_backward_rows(const Tensor& grad, const Tensor& ids,
                                                        const Tensor& partner_ids, const Tensor& lam,
                                                        const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                                        int64_t padding_idx, int64_t rows, ScalarType dtype) {
  const char* op = "mix_embeddings_backward_rows";
  check_grad(grad, ids, op);
  const cuda::Lookups lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, op);
  const OnDevice device(grad, op);
  const ScalarType wide = wide_type(grad.scalar_type(), dtype);
  const Sorted entries(lookups, rows, padding_idx, wide, true, grad, device, op);
  const Tensor row = nonzero(*entries.used);
  Tensor values = fresh(grad, {row.size(0), grad.size(2)}, dtype);
  entries.sum(grad, wide, row, values, device, op);
  return {row, values};
}

// ---- BERT's embedding block

// The arguments of both passes, checked; norm_bias, eps, outputs and the flag are left to the caller.
cuda::BertEmbeddings bert_arguments(const Tensor& weight, const Tensor& position_weight,
                                    const OptionalTensor& type_weight, const Tensor& norm_weight, const Tensor& ids,
                                    const Tensor& partner_ids, const Tensor& lam, const OptionalTensor& mask,
                                    const OptionalTensor& partner_mask, const Tensor& position_ids,
                                    const OptionalTensor& token_type_ids, const char* op) {
  check_table(weight, op);
  cuda::BertEmbeddings m = {};
  m.words.lookups = lookups_of(ids, partner_ids, lam, mask, partner_mask, op);
  check_bert(weight, position_weight, type_weight, norm_weight, ids, position_ids, token_type_ids, op);
  m.words.weight = weight.const_data_ptr();
  m.words.row_stride = weight.stride(0);
  m.words.total = weight.size(0);
  m.words.columns = weight.size(1);
  m.words.table_format = format_of(weight.scalar_type(), op, "weight");
  m.positions = position_weight.size(0);
  m.position_weight = position_weight.const_data_ptr();
  m.position_ids = data<int64_t>(position_ids);
  if (type_weight.has_value()) {
    m.types = type_weight->size(0);
    m.type_weight = type_weight->const_data_ptr();
    if (token_type_ids.has_value()) m.token_type_ids = data<int64_t>(*token_type_ids);
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
  cuda::BertEmbeddings m = bert_arguments(weight, position_weight, type_weight, norm_weight, ids, partner_ids, lam,
                                          mask, partner_mask, position_ids, token_type_ids, op);
  check(norm_bias, op, "norm_bias", weight.scalar_type(), {m.words.columns});
  m.words.format = format_of(dtype, op, "out");
  const OnDevice device(weight, op);
  const ScalarType wide = wide_type(weight.scalar_type(), weight.scalar_type());
  const int64_t batch = ids.size(0), length = ids.size(1);
  Tensor out = fresh(weight, {batch, length, m.words.columns}, dtype);
  Tensor mean = fresh(weight, {batch, length}, wide), rstd = fresh(weight, {batch, length}, wide);
  m.norm_bias = norm_bias.const_data_ptr();
  m.eps = eps;
  m.words.out = out.mutable_data_ptr();
  m.words.flag = device.flag();
  m.mean = mean.mutable_data_ptr();
  m.rstd = rstd.mutable_data_ptr();
  device.launched(cuda::bert_embeddings(m, device.stream()));
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_bert_embeddings_backward(
    const Tensor& grad, const Tensor& weight, const Tensor& position_weight, const OptionalTensor& type_weight,
    const Tensor& norm_weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
    const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& position_ids,
    const OptionalTensor& token_type_ids, const Tensor& mean, const Tensor& rstd) {
  const char* op = "mix_bert_embeddings_backward";
  check_grad(grad, ids, op);
  cuda::BertBackward b = {bert_arguments(weight, position_weight, type_weight, norm_weight, ids, partner_ids, lam, mask,
                                         partner_mask, position_ids, token_type_ids, op)};
  cuda::BertEmbeddings& m = b.forward;
  const int64_t batch = ids.size(0), length = ids.size(1), tokens = batch * length, columns = m.words.columns;
  SPURMIX_CHECK(grad.size(2) == columns, op, ": grad must have ", columns, " columns");
  const ScalarType type = weight.scalar_type(), wide = wide_type(type, type);
  check(mean, op, "mean", wide, {batch, length});
  check(rstd, op, "rstd", wide, {batch, length});
  const OnDevice device(grad, op);
  const int64_t chunks = (tokens + cuda::kBertChunk - 1) / cuda::kBertChunk;
  const Tensor grad_mixed = fresh(grad, {batch, length, columns}, wide);
  const Tensor partial = fresh(grad, {chunks, 2, columns}, wide);
  m.words.flag = device.flag();
  m.mean = const_cast<void*>(mean.const_data_ptr());  // only read here
  m.rstd = const_cast<void*>(rstd.const_data_ptr());
  b.grad = grad.const_data_ptr();
  b.grad_format = format_of(grad.scalar_type(), op, "grad");
  b.grad_mixed = grad_mixed.mutable_data_ptr();
  b.partial = partial.mutable_data_ptr();
  device.launched(cuda::bert_backward(b, device.stream()));

  const auto table = [&](const int64_t* row, int64_t rows) {
    cuda::Lookups each = {};
    each.ids = row;
    each.tokens = tokens;
    const Tensor out = fresh(grad, {rows, columns}, type);
    if (rows > 0)
      Sorted(each, rows, -1, wide, false, grad, device, op).sum(grad_mixed, wide, std::nullopt, out, device, op);
    return out;
  };
  const auto norm = [&](int64_t which) {
    const int64_t first[] = {0};
    return torch::stable::to(torch::stable::sum(torch::stable::select(partial, 1, which), first), type);
  };
  return {grad_mixed, table(m.position_ids, m.positions), table(m.token_type_ids, m.types), norm(0), norm(1)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SPURMIX_LIBRARY, SPURMIX_KEY, m) {
  m.impl("mix_embeddings", TORCH_BOX(&mix_embeddings));
  m.impl("mix_embeddings_out", TORCH_BOX(&mix_embeddings_out));
  m.impl("mix_embeddings_backward", TORCH_BOX(&mix_embeddings_backward));
  m.impl("mix_embeddings_backward_out", TORCH_BOX(&mix_embeddings_backward_out));
  m.impl("mix_embeddings_backward_rows", TORCH_BOX(&mix_embeddings_backward_rows));
  m.impl("mix_bert_embeddings", TORCH_BOX(&mix_bert_embeddings));
  m.impl("mix_bert_embeddings_backward", TORCH_BOX(&mix_bert_embeddings_backward));
}

}  // namespace spurmix

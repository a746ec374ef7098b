// The operators on token embeddings: mix_embeddings, mix_bert_embeddings, and their gradients.
#include "device.h"

namespace spurmix {
namespace {

// ---- mix_embeddings

void run_mix_embeddings(const Tensor& weight, const TokenArguments& tokens, const Tensor& out, const char* op) {
  check_rows(weight, op, "weight", "[V, D]");
  tokens.check(op);
  check(out, op, "out", out.scalar_type(), {tokens.batch(), tokens.length(), weight.size(1)});
  device::mix_embeddings(weight, tokens, out, op);
}

void mix_embeddings_out(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                        const OptionalTensor& mask, const OptionalTensor& partner_mask, Tensor out) {
  const char* op = "mix_embeddings_out";
  check_disjoint({{out, "out"}},
                 {{weight, "weight"},
                  {ids, "ids"},
                  {partner_ids, "partner_ids"},
                  {lam, "lam"},
                  {mask, "mask"},
                  {partner_mask, "partner_mask"}},
                 op);
  run_mix_embeddings(weight, {ids, partner_ids, lam, mask, partner_mask}, out, op);
}

Tensor mix_embeddings(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                      const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t, ScalarType dtype) {
  SPURMIX_CHECK(weight.dim() == 2 && ids.dim() == 2, "mix_embeddings: weight must be [V, D] and ids [B, S]");
  Tensor out = fresh(weight, {ids.size(0), ids.size(1), weight.size(1)}, dtype);
  run_mix_embeddings(weight, {ids, partner_ids, lam, mask, partner_mask}, out, "mix_embeddings");
  return out;
}

// ---- gradient of mix_embeddings

void run_backward(const Tensor& grad, const TokenArguments& tokens, int64_t padding_idx, const Tensor& grad_weight,
                  const char* op) {
  tokens.check_gradient(grad, op);
  check(grad_weight, op, "grad_weight", grad_weight.scalar_type(), {grad_weight.size(0), grad.size(2)});
  tokens.check(op);
  device::mix_embeddings_backward(grad, tokens, padding_idx, grad_weight, op);
}

void mix_embeddings_backward_out(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                                 const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t padding_idx,
                                 Tensor grad_weight) {
  const char* op = "mix_embeddings_backward_out";
  SPURMIX_CHECK(grad_weight.dim() == 2, op, ": grad_weight must be [V, D]");
  check_disjoint({{grad_weight, "grad_weight"}},
                 {{grad, "grad"},
                  {ids, "ids"},
                  {partner_ids, "partner_ids"},
                  {lam, "lam"},
                  {mask, "mask"},
                  {partner_mask, "partner_mask"}},
                 op);
  run_backward(grad, {ids, partner_ids, lam, mask, partner_mask}, padding_idx, grad_weight, op);
}

Tensor mix_embeddings_backward(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                               const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t padding_idx,
                               int64_t rows, ScalarType dtype) {
  const char* op = "mix_embeddings_backward";
  SPURMIX_CHECK(grad.dim() == 3 && rows >= 0, op, ": grad must be [B, S, D] and rows 0 or more");
  Tensor grad_weight = fresh(grad, {rows, grad.size(2)}, dtype);
  run_backward(grad, {ids, partner_ids, lam, mask, partner_mask}, padding_idx, grad_weight, op);
  return grad_weight;
}

std::tuple<Tensor, Tensor> mix_embeddings_backward_rows(const Tensor& grad, const Tensor& ids,
                                                        const Tensor& partner_ids, const Tensor& lam,
                                                        const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                                        int64_t padding_idx, int64_t rows, ScalarType dtype) {
  const char* op = "mix_embeddings_backward_rows";
  SPURMIX_CHECK(rows >= 0, op, ": rows must be 0 or more, got ", rows);
  const TokenArguments tokens = {ids, partner_ids, lam, mask, partner_mask};
  tokens.check_gradient(grad, op);
  tokens.check(op);
  return device::mix_embeddings_backward_rows(grad, tokens, padding_idx, rows, dtype, op);
}

// ---- BERT's embedding block

std::tuple<Tensor, Tensor, Tensor> mix_bert_embeddings(const Tensor& weight, const Tensor& position_weight,
                                                       const OptionalTensor& type_weight, const Tensor& norm_weight,
                                                       const Tensor& norm_bias, const Tensor& ids,
                                                       const Tensor& partner_ids, const Tensor& lam,
                                                       const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                                       const Tensor& position_ids, const OptionalTensor& token_type_ids,
                                                       double eps, int64_t, ScalarType dtype) {
  const char* op = "mix_bert_embeddings";
  const TokenArguments tokens = {ids, partner_ids, lam, mask, partner_mask};
  const BertArguments args = {weight, position_weight, type_weight, norm_weight, tokens, position_ids, token_type_ids};
  args.check(op);
  check(norm_bias, op, "norm_bias", weight.scalar_type(), {args.columns()});
  Tensor out = fresh(weight, {tokens.batch(), tokens.length(), args.columns()}, dtype);
  Tensor mean = fresh(weight, {tokens.batch(), tokens.length()}, wide_type(weight));
  Tensor rstd = fresh(weight, {tokens.batch(), tokens.length()}, wide_type(weight));
  device::mix_bert_embeddings(args, norm_bias, eps, out, mean, rstd, op);
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_bert_embeddings_backward(
    const Tensor& grad, const Tensor& weight, const Tensor& position_weight, const OptionalTensor& type_weight,
    const Tensor& norm_weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
    const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& position_ids,
    const OptionalTensor& token_type_ids, const Tensor& mean, const Tensor& rstd) {
  const char* op = "mix_bert_embeddings_backward";
  const TokenArguments tokens = {ids, partner_ids, lam, mask, partner_mask};
  const BertArguments args = {weight, position_weight, type_weight, norm_weight, tokens, position_ids, token_type_ids};
  tokens.check_gradient(grad, op);
  args.check(op);
  const int64_t batch = tokens.batch(), length = tokens.length(), columns = args.columns();
  SPURMIX_CHECK(grad.size(2) == columns, op, ": grad must have ", columns, " columns, got ", grad.size(2));
  const ScalarType type = weight.scalar_type(), wide = wide_type(weight);
  check(mean, op, "mean", wide, {batch, length});
  check(rstd, op, "rstd", wide, {batch, length});
  const device::BertGradients out = {fresh(grad, {batch, length, columns}, wide),
                                     fresh(grad, {position_weight.size(0), columns}, type),
                                     fresh(grad, {args.types(), columns}, type)};
  const auto [norm_weight_grad, norm_bias_grad] = device::mix_bert_embeddings_backward(args, grad, mean, rstd, out, op);
  return {out.mixed, out.positions, out.types, norm_weight_grad, norm_bias_grad};
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

// What the operators on token embeddings share on all devices: argument checks, and entry points that only make
// outputs. Included behind ops_cpu.h or ops_cuda.h, once a module.
#pragma once

#include "ops_common.h"

namespace spurmix {

inline ScalarType wide_type(ScalarType one, ScalarType other) {
  return one == ScalarType::Double || other == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline const bool* mask_data(const OptionalTensor& mask) { return mask.has_value() ? data<bool>(*mask) : nullptr; }

// Two id matrices [B, S], lam [B] and masks; whether ids are in range is left to the device.
inline void check_lookups(const Tensor& ids, const Tensor& partner_ids, const Tensor& lam, const OptionalTensor& mask,
                          const OptionalTensor& partner_mask, const char* op) {
  SPURMIX_CHECK(ids.dim() == 2, op, ": ids must be [B, S]");
  const int64_t batch = ids.size(0), length = ids.size(1);
  check(ids, op, "ids", ScalarType::Long, {batch, length});
  check(partner_ids, op, "partner_ids", ScalarType::Long, {batch, length});
  check(lam, op, "lam", ScalarType::Float, {batch});
  if (mask.has_value()) check(*mask, op, "mask", ScalarType::Bool, {batch, length});
  if (partner_mask.has_value()) check(*partner_mask, op, "partner_mask", ScalarType::Bool, {batch, length});
}

inline void check_table(const Tensor& weight, const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(weight) && weight.dim() == 2, op, ": weight must be [V, D] ", SPURMIX_WHERE);
  SPURMIX_CHECK(weight.size(1) <= 1 || weight.stride(1) == 1, op, ": each row of weight must be contiguous");
}

inline void check_grad(const Tensor& grad, const Tensor& ids, const char* op) {
  SPURMIX_CHECK(SPURMIX_HERE(grad) && grad.dim() == 3, op, ": grad must be [B, S, D] ", SPURMIX_WHERE);
  SPURMIX_CHECK(ids.dim() == 2, op, ": ids must be [B, S]");
  check(grad, op, "grad", grad.scalar_type(), {ids.size(0), ids.size(1), grad.size(2)});
}

// The arguments that both passes of BERT's block take beside its lookups.
inline void check_bert(const Tensor& weight, const Tensor& position_weight, const OptionalTensor& type_weight,
                       const Tensor& norm_weight, const Tensor& ids, const Tensor& position_ids,
                       const OptionalTensor& token_type_ids, const char* op) {
  const ScalarType type = weight.scalar_type();
  const int64_t columns = weight.size(1), batch = ids.size(0), length = ids.size(1);
  SPURMIX_CHECK(columns >= 1, op, ": weight must have at least one column");
  SPURMIX_CHECK(position_weight.dim() == 2, op, ": position_weight must be [P, D]");
  check(position_weight, op, "position_weight", type, {position_weight.size(0), columns});
  check(position_ids, op, "position_ids", ScalarType::Long, {batch, length});
  if (type_weight.has_value()) {
    SPURMIX_CHECK(type_weight->dim() == 2 && type_weight->size(0) >= 1, op, ": type_weight must be [T, D], T >= 1");
    check(*type_weight, op, "type_weight", type, {type_weight->size(0), columns});
    if (token_type_ids.has_value()) check(*token_type_ids, op, "token_type_ids", ScalarType::Long, {batch, length});
  }
  check(norm_weight, op, "norm_weight", type, {columns});
}

// What a device does; the rest of this header only makes the outputs.
void mix_embeddings_into(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                         const OptionalTensor& mask, const OptionalTensor& partner_mask, const Tensor& out,
                         const char* op);
void mix_embeddings_backward_into(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                                  const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t padding_idx,
                                  const Tensor& out, const char* op);

inline void mix_embeddings_out(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                               const OptionalTensor& mask, const OptionalTensor& partner_mask, Tensor out) {
  mix_embeddings_into(weight, ids, partner_ids, lam, mask, partner_mask, out, "mix_embeddings_out");
}

inline Tensor mix_embeddings(const Tensor& weight, const Tensor& ids, const Tensor& partner_ids, const Tensor& lam,
                             const OptionalTensor& mask, const OptionalTensor& partner_mask, int64_t,
                             ScalarType dtype) {
  SPURMIX_CHECK(weight.dim() == 2 && ids.dim() == 2, "mix_embeddings: weight must be [V, D] and ids [B, S]");
  Tensor out = fresh(weight, {ids.size(0), ids.size(1), weight.size(1)}, dtype);
  mix_embeddings_into(weight, ids, partner_ids, lam, mask, partner_mask, out, "mix_embeddings");
  return out;
}

inline void mix_embeddings_backward_out(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids,
                                        const Tensor& lam, const OptionalTensor& mask,
                                        const OptionalTensor& partner_mask, int64_t padding_idx, Tensor grad_weight) {
  const char* op = "mix_embeddings_backward_out";
  SPURMIX_CHECK(grad_weight.dim() == 2, op, ": grad_weight must be [V, D]");
  mix_embeddings_backward_into(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, grad_weight, op);
}

inline Tensor mix_embeddings_backward(const Tensor& grad, const Tensor& ids, const Tensor& partner_ids,
                                      const Tensor& lam, const OptionalTensor& mask, const OptionalTensor& partner_mask,
                                      int64_t padding_idx, int64_t rows, ScalarType dtype) {
  const char* op = "mix_embeddings_backward";
  SPURMIX_CHECK(grad.dim() == 3 && rows >= 0, op, ": grad must be [B, S, D] and rows 0 or more");
  Tensor out = fresh(grad, {rows, grad.size(2)}, dtype);
  mix_embeddings_backward_into(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, out, op);
  return out;
}

}  // namespace spurmix

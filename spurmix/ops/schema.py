"""Schemas: the signature of every operator in `torch.ops.spurmix`.

The compiled modules register implementations of these schemas. Without them, the PyTorch reference is used.
"""

# Arguments shared by the functional and the `_out` form of an op.
_DRAW = "Tensor tables, Tensor members, SymInt seed, SymInt start"
_MIX_IMAGES = (
    "Tensor images, Tensor index, Tensor partner, Tensor lam, Tensor mean, Tensor std, Tensor? boxes, Tensor? flips"
)
_MIX_IMAGE_BATCH = (
    "Tensor images, Tensor labels, Tensor tables, Tensor members, Tensor mean, Tensor std, "
    "bool crop, float scale_min, float scale_max, float ratio_min, float ratio_max, bool flip, "
    "SymInt seed, SymInt start"
)
_MIX_ROWS = "Tensor rows, Tensor index, Tensor partner, Tensor lam"
_LOOKUPS = "Tensor ids, Tensor partner_ids, Tensor lam, Tensor? mask, Tensor? partner_mask"
_LABELS = "Tensor label, Tensor partner_label, Tensor lam"

SCHEMAS: tuple[str, ...] = (
    f"draw({_DRAW}, SymInt count, Tensor? counter=None) -> (Tensor index, Tensor partner, Tensor lam, Tensor group)",
    f"draw_out({_DRAW}, Tensor? counter, Tensor(a!) index, Tensor(b!) partner, Tensor(c!) lam, Tensor(d!) group) -> ()",
    f"mix_images({_MIX_IMAGES}, SymInt height, SymInt width, ScalarType dtype, bool channels_last) -> Tensor",
    f"mix_images_out({_MIX_IMAGES}, Tensor(a!) out) -> ()",
    f"mix_image_batch({_MIX_IMAGE_BATCH}, SymInt count, SymInt height, SymInt width, ScalarType dtype, "
    "bool channels_last, Tensor? counter=None) -> (Tensor input, Tensor label, Tensor partner_label, Tensor lam, "
    "Tensor index, Tensor partner, Tensor group)",
    f"mix_image_batch_out({_MIX_IMAGE_BATCH}, Tensor? counter, Tensor(a!) input, Tensor(b!) label, "
    "Tensor(c!) partner_label, Tensor(d!) lam, Tensor(e!) index, Tensor(f!) partner, Tensor(g!) group) -> ()",
    f"mix_rows({_MIX_ROWS}, ScalarType dtype) -> Tensor",
    f"mix_rows_out({_MIX_ROWS}, Tensor(a!) out) -> ()",
    f"mix_embeddings(Tensor weight, {_LOOKUPS}, int padding_idx, ScalarType dtype) -> Tensor",
    f"mix_embeddings_out(Tensor weight, {_LOOKUPS}, Tensor(a!) out) -> ()",
    f"mix_embeddings_backward(Tensor grad, {_LOOKUPS}, int padding_idx, SymInt rows, ScalarType dtype) -> Tensor",
    f"mix_embeddings_backward_out(Tensor grad, {_LOOKUPS}, int padding_idx, Tensor(a!) grad_weight) -> ()",
    f"mix_embeddings_backward_rows(Tensor grad, {_LOOKUPS}, int padding_idx, SymInt rows, ScalarType dtype) "
    "-> (Tensor row, Tensor values)",
    "mix_bert_embeddings(Tensor weight, Tensor position_weight, Tensor? type_weight, Tensor norm_weight, "
    f"Tensor norm_bias, {_LOOKUPS}, Tensor position_ids, Tensor? token_type_ids, float eps, int padding_idx, "
    "ScalarType dtype) -> (Tensor output, Tensor mean, Tensor rstd)",
    "mix_bert_embeddings_backward(Tensor grad, Tensor weight, Tensor position_weight, Tensor? type_weight, "
    f"Tensor norm_weight, {_LOOKUPS}, Tensor position_ids, Tensor? token_type_ids, Tensor mean, Tensor rstd) "
    "-> (Tensor grad_mixed, Tensor grad_position, Tensor grad_type, Tensor grad_norm_weight, Tensor grad_norm_bias)",
    f"mix_labels({_LABELS}, SymInt num_classes, ScalarType dtype) -> Tensor",
    f"mix_labels_out({_LABELS}, Tensor(a!) out) -> ()",
    f"mixed_cross_entropy(Tensor logits, {_LABELS}, int reduction, float label_smoothing) "
    "-> (Tensor loss, Tensor logsumexp)",
    f"mixed_cross_entropy_with_grad(Tensor logits, {_LABELS}, int reduction, float label_smoothing) "
    "-> (Tensor loss, Tensor grad_logits)",
    f"mixed_cross_entropy_backward(Tensor grad, Tensor logits, Tensor logsumexp, {_LABELS}, int reduction, "
    "float label_smoothing) -> Tensor",
    "group_counts(Tensor logits, Tensor label, Tensor group, Tensor(a!) counts) -> ()",
)

"""The operators as functions: `spurmix.functional.<name>`. They check their arguments and choose a backend.

Every operator has the argument `backend`: "auto" (the fastest one for the device), "cpu", "cuda", "triton" or "reference".
The environment variable SPURMIX_BACKEND sets the meaning of "auto".
"""

from __future__ import annotations

from spurmix.ops.augment import Augment
from spurmix.ops.device_errors import check
from spurmix.ops.functional.counts import group_counts
from spurmix.ops.functional.embeddings import mix_bert_embeddings, mix_embeddings
from spurmix.ops.functional.images import MixedImages, mix_image_batch, mix_images
from spurmix.ops.functional.loss import mix_labels, mixed_cross_entropy
from spurmix.ops.functional.rows import mix_rows
from spurmix.ops.functional.sampling import Draw, draw
from spurmix.ops.gradients.grad_buffer import GradientBuffer
from spurmix.ops.tables import DrawTables, draw_tables

__all__ = [
    "Augment",
    "Draw",
    "DrawTables",
    "GradientBuffer",
    "MixedImages",
    "check",
    "draw",
    "draw_tables",
    "group_counts",
    "mix_bert_embeddings",
    "mix_embeddings",
    "mix_image_batch",
    "mix_images",
    "mix_labels",
    "mix_rows",
    "mixed_cross_entropy",
]

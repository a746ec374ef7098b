"""Compiles every Triton kernel for three GPU generations and prints registers and stack of each; needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from spurmix.kernels import draw, images, launch, launch_text, loss, rows, text
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    "flag": "*i32", "tables": "*i64", "length": "i64", "members": "*i32", "seed": "i64", "start": "i64",
    "counter": "*i64", "index": "*i64", "partner": "*i64", "lam": "*fp32", "group": "*i64", "count": "i32",
    "rows": "*fp32", "stride": "i64", "total": "i64", "columns": "i32", "label": "*i64", "partner_label": "*i64",
    "classes": "i32", "logits": "*bf16", "smoothing": "fp32", "loss": "*fp32", "logsumexp": "*fp32", "grad": "*fp32",
    "grad_stride": "i64", "factor": "fp32", "counts": "*i64", "groups": "i32", "images": "*u8", "image_stride": "i64",
    "labels": "*i64", "mean": "*fp32", "std": "*fp32", "scale_min": "fp32", "scale_max": "fp32", "log_min": "fp32",
    "log_max": "fp32", "boxes": "*fp32", "flips": "*u8", "height": "i32", "width": "i32", "out_height": "i32",
    "out_width": "i32", "out": "*bf16", "weight": "*fp32", "ids": "*i64", "partner_ids": "*i64", "mask": "*u8",
    "partner_mask": "*u8", "sequence": "i32", "entry_token": "*i64", "entry_weight": "*fp32", "offsets": "*i64",
    "position_weight": "*fp32", "positions": "i32", "type_weight": "*fp32", "types": "i32", "norm_weight": "*fp32",
    "norm_bias": "*fp32", "position_ids": "*i64", "token_type_ids": "*i64", "eps": "fp32", "rstd": "*fp32",
    "grad_mixed": "*fp32", "partial": "*fp32", "tokens": "i32",
}  # fmt: skip
WIDE = triton.language.float32
BATCH: dict[str, Any] = dict(HAS_MEMBERS=True, HAS_COUNTER=True, KEEP_LABELS=2)


def pixels(crop: bool, last: bool) -> dict[str, Any]:
    return dict(CROP=crop, FLIP=crop, LAST=last, CHANNELS=3, BLOCK=launch.CROP_BLOCK if crop else launch.PIXEL_BLOCK)


KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (draw.draw_kernel, dict(HAS_MEMBERS=True, HAS_COUNTER=True, BLOCK=128)),
    *((images.mix_images_kernel, pixels(c, last)) for c in (False, True) for last in (False, True)),
    *((images.mix_image_batch_kernel, {**pixels(c, last), **BATCH}) for c in (False, True) for last in (False, True)),
    (rows.mix_rows_kernel, dict(WIDE=WIDE, BLOCK=1024)),
    (rows.mix_labels_kernel, dict(WIDE=WIDE, BLOCK=1024)),
    (loss.cross_entropy_kernel, dict(WIDE=WIDE, STEPS=1, BLOCK=1024)),
    (loss.cross_entropy_backward_kernel, dict(WIDE=WIDE, BLOCK=1024)),
]
COUNTS = dict(WIDE=WIDE, STEPS=1, BLOCK=1024, GROUP_STEPS=1, GROUP_BLOCK=16)
MASKS: dict[str, Any] = dict(MASK=True, PARTNER_MASK=True, WIDE=WIDE, BLOCK=1024)
KERNELS += [
    (text.mix_embeddings_kernel, MASKS),
    (text.sum_rows_kernel, dict(WIDE=WIDE, BLOCK=1024)),
    (text.bert_embeddings_kernel, dict(TYPES=True, TYPE_IDS=True, **MASKS)),
    (text.bert_backward_kernel, dict(TYPES=True, TYPE_IDS=True, CHUNK=launch_text.TOKEN_CHUNK, num_warps=8, **MASKS)),
]
KERNELS += [(loss.group_counts_kernel, dict(MEMBERSHIP=False, **COUNTS))]


def resources(kernel: Any, constants: dict[str, Any], capability: int, folder: Path) -> str:
    """Registers and stack of one compiled kernel, as cuobjdump reports them."""
    signature = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
    positions = {(k,): constants[name] for k, name in enumerate(kernel.arg_names) if name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=constants.get("num_warps", 4))
    )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    shown = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:\d+ STACK:\d+", shown)
    return str(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kernel, constants in KERNELS:
            for capability in (80, 90, 100):
                print(kernel.__name__, f"sm_{capability}", resources(kernel, constants, capability, Path(folder)))


if __name__ == "__main__":
    main()

"""spurmix: group-balanced sampling and mixing in one pass, to debias models while they are fine-tuned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spurmix._version import __version__

if TYPE_CHECKING:
    from spurmix.core import policies
    from spurmix.core.groups import GroupIndex
    from spurmix.core.lam import Beta, Fixed, InverseCDF, TwoPoint, Uniform
    from spurmix.core.policy import MixPolicy
    from spurmix.data.batch import Batch, TokenPairs, Tokens
    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.data.loader.mix_loader import MixLoader
    from spurmix.data.pack.layouts.civilcomments import read_civilcomments
    from spurmix.data.sources.arrays import FeatureSource, ImageSource
    from spurmix.data.sources.tokens import TokenSource
    from spurmix.deploy.export import export_onnx
    from spurmix.deploy.predictor import Predictor
    from spurmix.ops import functional
    from spurmix.ops.functional import draw
    from spurmix.train import models
    from spurmix.train.afr import retrain_afr
    from spurmix.train.evaluate import evaluate
    from spurmix.train.finetune import finetune
    from spurmix.train.head import extract_features, retrain_head
    from spurmix.train.heads.fit import fit_head
    from spurmix.train.heads.options import HeadOptions
    from spurmix.train.hf_trainer import MixTrainer
    from spurmix.train.infer import find_errors, infer_groups
    from spurmix.train.objectives import GroupDRO, Objective
    from spurmix.train.text import MixedInputs

# Public name -> (module, attribute or None for the module itself); loaded on first use (PEP 562).
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Batch": ("spurmix.data.batch", "Batch"),
    "Beta": ("spurmix.core.lam", "Beta"),
    "FeatureSource": ("spurmix.data.sources.arrays", "FeatureSource"),
    "Fixed": ("spurmix.core.lam", "Fixed"),
    "GroupDRO": ("spurmix.train.objectives", "GroupDRO"),
    "GroupIndex": ("spurmix.core.groups", "GroupIndex"),
    "HeadOptions": ("spurmix.train.heads.options", "HeadOptions"),
    "ImageSource": ("spurmix.data.sources.arrays", "ImageSource"),
    "InverseCDF": ("spurmix.core.lam", "InverseCDF"),
    "MixLoader": ("spurmix.data.loader.mix_loader", "MixLoader"),
    "MixedInputs": ("spurmix.train.text", "MixedInputs"),
    "MixTrainer": ("spurmix.train.hf_trainer", "MixTrainer"),
    "MixPolicy": ("spurmix.core.policy", "MixPolicy"),
    "Objective": ("spurmix.train.objectives", "Objective"),
    "PackedDataset": ("spurmix.data.dataset.packed", "PackedDataset"),
    "Predictor": ("spurmix.deploy.predictor", "Predictor"),
    "TokenPairs": ("spurmix.data.batch", "TokenPairs"),
    "TokenSource": ("spurmix.data.sources.tokens", "TokenSource"),
    "Tokens": ("spurmix.data.batch", "Tokens"),
    "TwoPoint": ("spurmix.core.lam", "TwoPoint"),
    "Uniform": ("spurmix.core.lam", "Uniform"),
    "draw": ("spurmix.ops.functional", "draw"),
    "evaluate": ("spurmix.train.evaluate", "evaluate"),
    "export_onnx": ("spurmix.deploy.export", "export_onnx"),
    "extract_features": ("spurmix.train.head", "extract_features"),
    "find_errors": ("spurmix.train.infer", "find_errors"),
    "finetune": ("spurmix.train.finetune", "finetune"),
    "fit_head": ("spurmix.train.heads.fit", "fit_head"),
    "functional": ("spurmix.ops.functional", None),
    "infer_groups": ("spurmix.train.infer", "infer_groups"),
    "models": ("spurmix.train.models", None),
    "read_civilcomments": ("spurmix.data.pack.layouts.civilcomments", "read_civilcomments"),
    "policies": ("spurmix.core.policies", None),
    "retrain_afr": ("spurmix.train.afr", "retrain_afr"),
    "retrain_head": ("spurmix.train.head", "retrain_head"),
}

__all__ = [
    "Batch",
    "Beta",
    "FeatureSource",
    "Fixed",
    "GroupDRO",
    "GroupIndex",
    "HeadOptions",
    "ImageSource",
    "InverseCDF",
    "MixLoader",
    "MixPolicy",
    "MixTrainer",
    "MixedInputs",
    "Objective",
    "PackedDataset",
    "Predictor",
    "TokenPairs",
    "TokenSource",
    "Tokens",
    "TwoPoint",
    "Uniform",
    "__version__",
    "draw",
    "evaluate",
    "export_onnx",
    "extract_features",
    "find_errors",
    "finetune",
    "fit_head",
    "functional",
    "infer_groups",
    "models",
    "policies",
    "read_civilcomments",
    "retrain_afr",
    "retrain_head",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spurmix' has no attribute {name!r}")
    module_name, attribute = _PUBLIC[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("spurmix"):
            raise
        extra = {"Predictor": "serve", "PackedDataset": "data"}.get(name, "train")
        raise ImportError(
            f"spurmix.{name} needs the package {error.name!r}: pip install 'spurmix[{extra}]'", name=error.name
        ) from error
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

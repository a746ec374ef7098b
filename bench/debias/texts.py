"""A text setting with a spurious attribute: the sentences of the demo, as features of a frozen MiniLM."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from bench.debias.features import Known
from spurmix import FeatureSource, GroupIndex, TokenSource, extract_features, finetune, models, policies
from spurmix.cli.demo import sentences
from spurmix.cli.demo.split import DemoSplit
from spurmix.core.groups import UNKNOWN
from spurmix.train.runs.config import RunConfig, resolve
from spurmix.train.runs.data import SplitData
from spurmix.train.runs.processes import Processes
from spurmix.train.runs.run import make_loader
from spurmix.train.sweep.task import SweepTask

SETTING = "texts-2x2-95"
VALIDATION = 25
"""Maximum number of validation texts per group."""


def text_config(epochs: float = 20.0) -> RunConfig:
    """Settings of the training of a head, those of the demo."""
    settings: dict[str, object] = {
        "model": "linear", "batch_size": 128, "epochs": epochs, "learning_rate": 1e-3, "device": "cpu", "prefetch": 0,
    }  # fmt: skip
    return resolve(settings)


@cache
def _features(seed: int, size: int) -> tuple[DemoSplit[list[str]], DemoSplit[list[str]], torch.Tensor, torch.Tensor]:
    """Texts of a seed, and their features. All numbers of attributed examples share them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.minilm_folder(), local_files_only=True, trust_remote_code=False)
    train, test = sentences.load(seed, size, size // 12)
    encoder = models.minilm(2)
    found = [
        extract_features(encoder, TokenSource.from_texts(split.examples, tokenizer, max_length=64), progress=False)
        for split in (train, test)
    ]
    return train, test, found[0], found[1]


def make_text_task(seed: int, known: Known, epochs: float = 20.0, size: int = sentences.TRAIN) -> SweepTask:
    """Make the features of a seed, and pre-train a linear head by ERM.

    Args:
        seed: Random seed of texts, weights and pre-training.
        known: Number of attributed training texts of each group, or "all". Small groups have fewer.
        epochs: Epochs of training with each method. Pre-training takes half of them.
        size: Number of training texts, including those of validation.

    Returns:
        The task.
    """
    train, test, features, test_features = _features(seed, size)
    rng = np.random.default_rng([seed, 11])
    held_out, attributed = [], []
    for group in range(4):
        rows = rng.permutation(np.flatnonzero(2 * train.label + train.attribute == group))
        count = rows.size if known == "all" else known
        validation = max(1, min(VALIDATION, count, rows.size // 4))
        held_out.append(rows[:validation])
        attributed.append(rows[validation : validation + count])
    shown = np.full(train.label.size, UNKNOWN)
    chosen = np.concatenate(attributed)
    shown[chosen] = train.attribute[chosen]
    validation_rows = np.concatenate(held_out)
    rest = np.setdiff1d(np.arange(train.label.size), validation_rows)
    splits = [
        _split("train", features[torch.from_numpy(rest)], train.label[rest], shown[rest]),
        _split("validation", features[torch.from_numpy(validation_rows)], *_cells_of(train, validation_rows)),
        _split("test", test_features, test.label, test.attribute),
    ]
    config, processes = text_config(epochs), Processes("cpu")
    torch.manual_seed(seed)
    model = nn.Linear(features.shape[1], 2)
    shorter = RunConfig(**{**vars(config), "epochs": epochs / 2, "seed": seed})
    loader = make_loader(shorter, splits[0], policies.erm(), processes)
    finetune(model, loader, options=shorter.finetune_options(), progress=False)
    return SweepTask(config, model, splits[0], splits[1], splits[2], processes)


def _cells_of(split: DemoSplit[list[str]], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return split.label[rows], split.attribute[rows]


def _split(name: str, features: torch.Tensor, labels: np.ndarray, attributes: np.ndarray) -> SplitData:
    names = {"class_names": sentences.CLASS_NAMES, "attribute_names": sentences.ATTRIBUTE_NAMES}
    return SplitData(name, FeatureSource(features), GroupIndex(labels, attributes, **names))

"""Invalid arguments of public functions raise a TypeError or ValueError that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spurmix
from spurmix import Beta, Fixed, GroupIndex, ImageSource, MixLoader, MixPolicy, TokenSource, Uniform, policies
from spurmix.data.dataset.format import Metadata, write_description, write_metadata
from spurmix.ops import functional as F
from spurmix.train import models

LABELS, ATTRIBUTES = [0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1]
GROUPS = GroupIndex(LABELS, ATTRIBUTES)
IMAGES = torch.zeros(6, 4, 5, 3, dtype=torch.uint8)
FEATURES, MODEL = torch.randn(6, 3), nn.Linear(3, 2)
TABLES = F.draw_tables(GROUPS, policies.erm())
INDEX, LAM, BOXES = torch.tensor([0, 5]), torch.tensor([0.5, 1.0]), torch.ones(2, 2, 4)
LABEL, WEIGHT, IDS = torch.tensor([0, 1]), torch.randn(9, 4), torch.ones(2, 3, dtype=torch.int64)
ERM = policies.erm()

NOT_INTEGER: list[Any] = ["8", 1.5, None, True, [1], torch.tensor(0.5)]
INTEGER = [*NOT_INTEGER, -1]
COUNT = [*INTEGER, 0]  # 1 or more
NOT_NUMBER: list[Any] = ["a", None, True, [0.5], 1j, np.nan, np.inf]
SHARE = [*NOT_NUMBER, -0.1, 1.1]  # in [0, 1]
POSITIVE = [*NOT_NUMBER, 0, -1.0]
FLAG: list[Any] = ["yes", 1, None, [True]]
NAMES: list[Any] = ["ab", 5, [1, 2]]
PATH: list[Any] = [5, None, b"x"]
DEVICE: list[Any] = ["gpu", 1.5, [0], object()]
DTYPE: list[Any] = ["float32", torch.int32, 3]
MEAN: list[Any] = ["a", (0.1, 0.2), (0.1, "b", 0.3), object(), np.nan]


def but(values: list[Any], *accepted: Any) -> list[Any]:
    """`values` without those that the argument accepts."""
    return [v for v in values if not any(v is a for a in accepted)]


def loader(**given: Any) -> Any:
    return MixLoader(**{"source": FEATURES, "groups": GROUPS, "policy": ERM, "batch_size": 2, **given})


def finetune(**given: Any) -> Any:
    return spurmix.finetune(**{"model": MODEL, "loader": loader(steps=1), "progress": False, **given})


def images(**given: Any) -> Any:
    return F.mix_images(IMAGES, INDEX, INDEX, LAM, **given)


def image_batch(**given: Any) -> Any:
    return F.mix_image_batch(**{"images": IMAGES, "labels": GROUPS_LABELS, "tables": TABLES, "seed": 0, "start": 0, "count": 2, **given})  # fmt: skip


def bert(**given: Any) -> Any:
    tables = (WEIGHT, torch.randn(5, 4), None, torch.ones(4), torch.zeros(4))
    return F.mix_bert_embeddings(*tables, IDS, IDS, LAM, **given)


def evaluate(**given: Any) -> Any:
    return spurmix.evaluate(**{"model": MODEL, "source": FEATURES, "groups": GROUPS, **given})


def export(**given: Any) -> Any:
    return spurmix.export_onnx(**{"model": MODEL, "path": "x.onnx", "source": FEATURES, "groups": GROUPS, **given})


def head(**given: Any) -> Any:
    return spurmix.retrain_head(**{"model": MODEL, "source": FEATURES, "groups": GROUPS, "policy": ERM, "features": FEATURES, "batch_size": 2, "steps": 1, "progress": False, **given})  # fmt: skip


def used(policy: MixPolicy) -> Any:
    return policy.resolve_arrays(GROUPS)


def draw(**given: Any) -> Any:
    return F.draw(**{"groups": GROUPS, "policy": ERM, "seed": 0, "start": 0, "count": 2, **given})


GROUPS_LABELS = torch.tensor(LABELS)

TABLE: list[tuple[str, Callable[..., Any], dict[str, list[Any]]]] = [
    ("GroupIndex", lambda **o: GroupIndex(**{"labels": LABELS, "attributes": ATTRIBUTES, **o}), {
        "labels": [None, "a", [0.5] * 6, [-1] * 6, []], "attributes": ["a", [0.5] * 6, [0], [-2] * 6],
        "groups": ["a", [0.5] * 6, [0], [-1] * 6], "class_names": NAMES, "attribute_names": NAMES, "spurious": [*INTEGER, 1]}),
    ("MixPolicy", lambda **o: used(MixPolicy(**o)), {
        "strata": ["group", None, 3, ["all"]], "weights": ["a", [1], [1, 1, 1, -1], {0: "a"}, {9: 1}, 3.0, [np.nan] * 4],
        "labels": ["both", None, True], "replacement": FLAG, "name": [None, 3], "unknown": ["both", None, []], "subsample": FLAG}),
    ("MixPolicy with partners", lambda **o: used(MixPolicy(**{"partner": {0: {1: 1}}, "lam": 0.5, **o})), {
        "partner": ["a", [[1]], {0: 1}, {0: {1: "a"}}, {0: {9: 1}}, {0: {1: -1}}], "lam": [*but(SHARE, np.nan, np.inf), np.nan, np.inf, lambda u: "a"]}),
    ("audit", lambda **o: ERM.audit(**{"groups": GROUPS, **o}), {
        "groups": [None, LABELS], "prior": ["a", [[1]], {0: "a"}, {9: [1, 0]}, {0: {0: "a"}}, {0: [1, 1]}]}),
    ("mixup", policies.mixup, {"alpha": POSITIVE}),
    ("lisa", policies.lisa, {"alpha": POSITIVE, "p": SHARE}),
    ("mixpro", lambda **o: used(policies.mixpro(**o)), {"target": [*(v for v in but(INTEGER, "8", None) if v != [1]), "nobody", [], [9], [0.5], [[1]], [False], [True] * 9],
        "s": SHARE, "unknown": ["both", 3, []], "attributed_only": but(FLAG, None), "subsample": FLAG}),
    ("upweight", lambda **o: used(policies.upweight(**o)), {"factors": ["a", [1], {0: "a"}, {0: -1}, {9: 1}, None]}),
    ("balance_attributes", lambda **o: used(policies.balance_attributes(**o)), {
        "lam": but(SHARE, None), "labels": ["both", None, True], "prior": ["a", [[1]], {0: "a"}, {9: [1, 0]}]}),
    ("Beta", lambda **o: Beta(**{"a": 1.0, **o}), {"a": POSITIVE, "b": but(POSITIVE, None)}),
    ("Uniform", Uniform, {"low": SHARE, "high": SHARE}),
    ("Fixed", Fixed, {"value": SHARE}),
    ("InverseCDF", spurmix.InverseCDF, {"function": [None, 0.5, "a"]}),
    ("draw", draw, {
        "groups": [None, LABELS], "policy": ["erm", 3], "seed": [*INTEGER, 2**63], "start": [*INTEGER, 2**63], "count": INTEGER,
        "out": [5, [1, 2], INDEX, [1, 2, 3]], "backend": ["tpu", None, 3, ["cpu"]]}),
    ("draw_tables", lambda **o: F.draw_tables(**{"groups": GROUPS, "policy": ERM, **o}), {"groups": [None, LABELS], "policy": [None, "erm"]}),
    ("mix_images", images, {
        "mean": [*MEAN, torch.zeros(2)], "std": [*MEAN, 0.0, (1, 1, -1), torch.zeros(3).double()], "size": [5, "ab", (3, "a"), (1.5, 2), (0, 1), (3, 4, 5), (True, 3)],
        "boxes": ["a", LAM], "flips": ["a", LAM], "dtype": DTYPE, "channels_last": FLAG, "out": ["a", LAM], "backend": ["tpu", None]}),
    ("mix_images with boxes", lambda **o: images(boxes=BOXES, **o), {"size": [5, "ab", (3, "a"), (1.5, 2), (0, 1), (3, 4, 5)]}),
    ("mix_image_batch", image_batch, {
        "images": ["a", FEATURES], "labels": [LABELS, FEATURES, LABEL], "tables": [None, GROUPS], "seed": [*INTEGER, 2**63],
        "start": INTEGER, "count": INTEGER, "mean": MEAN, "std": [*MEAN, 0.0], "augment": ["crop", True], "dtype": DTYPE,
        "channels_last": FLAG, "out": [5, [1], INDEX, [1] * 7], "backend": ["tpu"]}),
    ("Augment", F.Augment, {
        "size": ["ab", 1.5, True, 0, (3, "a"), (3, 4, 5), (3, -1)], "crop": FLAG, "flip": FLAG,
        "scale": [0.5, "ab", (0.5,), (0, 1), (0.5, 2), (0.9, 0.1), ("a", 1)], "ratio": [0.5, (0, 1), (2, 1), (1, np.inf), (None, 1)]}),
    ("mix_rows", lambda **o: F.mix_rows(**{"rows": FEATURES, "index": INDEX, "partner": INDEX, "lam": LAM, **o}), {
        "rows": ["a", IMAGES], "index": [[0, 5], LAM], "partner": [3, INDEX[:1]], "lam": [0.5, INDEX], "dtype": DTYPE,
        "out": ["a", LAM], "backend": ["tpu"]}),
    ("mix_labels", lambda **o: F.mix_labels(**{"label": LABEL, "partner_label": LABEL, "lam": LAM, "num_classes": 2, **o}), {
        "label": [[0, 1], LAM], "partner_label": [3], "lam": [0.5], "num_classes": COUNT, "dtype": DTYPE, "out": ["a", LAM]}),
    ("mixed_cross_entropy", lambda **o: F.mixed_cross_entropy(**{"logits": WEIGHT[:2], "label": LABEL, "partner_label": LABEL, "lam": LAM, **o}), {
        "logits": ["a", LABEL], "label": [[0, 1], LAM], "partner_label": [3, None], "lam": [0.5, None],
        "reduction": ["median", None, ["mean"], 1], "label_smoothing": SHARE, "backend": ["tpu"]}),
    ("group_counts", lambda **o: F.group_counts(**{"logits": WEIGHT[:2], "label": LABEL, "group": LABEL, "num_groups": 2, **o}), {
        "logits": ["a", LABEL], "label": [[0, 1], LAM], "group": ["a", LAM], "num_groups": INTEGER, "out": ["a", LAM, 3]}),
    ("mix_embeddings", lambda **o: F.mix_embeddings(**{"weight": WEIGHT, "ids": IDS, "partner_ids": IDS, "lam": LAM, **o}), {
        "weight": ["a", IDS], "ids": [[[1]], LAM], "partner_ids": [3], "lam": [0.5, LAM[:1]], "mask": [IDS, "a"], "partner_mask": [IDS],
        "padding_idx": [*but(NOT_INTEGER, None), 9, -10], "dtype": DTYPE, "sparse": FLAG, "grad_buffer": [3, WEIGHT], "out": ["a", LAM]}),
    ("mix_bert_embeddings", bert, {
        "eps": [*NOT_NUMBER, -1.0], "position_ids": ["a", LAM], "token_type_ids": [IDS, "a"], "padding_idx": ["a", 9], "sparse": FLAG,
        "grad_buffer": [3], "dtype": DTYPE}),
    ("check", F.check, {"device": DEVICE}),
    ("MixLoader", loader, {
        "source": ["a", LABELS, LABEL], "groups": [None, LABELS, GroupIndex([0])], "policy": [None, "erm"], "batch_size": COUNT, "seed": [*INTEGER, 2**63],
        "steps": but(COUNT, None), "epochs": but(POSITIVE, None), "device": DEVICE, "dtype": DTYPE, "channels_last": [*FLAG, True],
        "augment": ["crop", True, F.Augment()], "rank": [*INTEGER, 1], "world_size": [*COUNT, 3], "prefetch": INTEGER, "copy": FLAG,
        "pin_memory": but(FLAG, None), "bucket": [*COUNT, 2]}),
    ("set_step", lambda **o: loader(steps=3).set_step(**o), {"step": [*INTEGER, 4]}),
    ("batch", lambda **o: loader(steps=3).batch(**o), {"step": INTEGER}),
    ("load_state_dict", lambda **o: loader(steps=3).load_state_dict(**o), {"state": [None, 3, {}, {"step": 1, "fingerprint": 3}]}),
    ("ImageSource", lambda **o: ImageSource(**{"images": IMAGES, **o}), {
        "images": ["a", LABELS, FEATURES, IMAGES[:0]], "mean": MEAN, "std": [*MEAN, 0.0]}),
    ("ImageSource.normalized", lambda **o: ImageSource(IMAGES).normalized(**{"mean": 0.5, "std": 0.5, **o}), {"mean": MEAN, "std": MEAN}),
    ("ImageSource.to", lambda **o: ImageSource(IMAGES).to(**o), {"device": DEVICE}),
    ("FeatureSource", spurmix.FeatureSource, {"features": ["a", LABELS, IMAGES, FEATURES[:0], LABEL]}),
    ("FeatureSource.to", lambda **o: spurmix.FeatureSource(FEATURES).to(**o), {"device": DEVICE}),
    ("TokenSource", lambda **o: TokenSource(**{"ids": [1, 2, 3], "offsets": [0, 1, 3], **o}), {
        "ids": ["a", None, [0.5] * 3, [-1] * 3], "offsets": ["a", None, [0], [0, 2, 1]], "vocab_size": but(COUNT, None), "pad_id": INTEGER,
        "sep_id": but(INTEGER, None), "max_length": but(COUNT, None), "pad_multiple": COUNT}),
    ("TokenSource.from_lists", TokenSource.from_lists, {"texts": [5, "ab", None, [], [["a"]], [0.5]]}),
    ("TokenSource.from_texts", lambda **o: TokenSource.from_texts(**{"texts": ["a"], "tokenizer": None, **o}), {
        "max_length": but(COUNT, None), "pad_multiple": COUNT}),
    ("PackedDataset", spurmix.PackedDataset, {"path": PATH}),
    ("finetune", finetune, {
        "model": [None, "resnet50"], "loader": [None, [1]], "optimizer": ["adam", None, 3], "learning_rate": [*NOT_NUMBER, -1.0],
        "weight_decay": [*NOT_NUMBER, -1.0], "decay_all": FLAG, "momentum": [*NOT_NUMBER, -1.0], "schedule": ["flat", None, ["linear"]],
        "stages": COUNT, "warmup": SHARE, "mixed_precision": ["fp32", None, True], "accumulate": COUNT, "clip": but(POSITIVE, None),
        "freeze": ["all", None, True], "label_smoothing": SHARE, "output": but(PATH, None), "save_every": but(COUNT, None),
        "max_checkpoints": COUNT, "options": ["a", 3, {"clip": 1.0}], "resume": FLAG, "progress": but(FLAG, None), "after_step": ["a", 3]}),
    ("retrain_head", head, {
        "model": [None, "resnet50"], "groups": [None], "policy": [None, "erm"], "features": ["a", FEATURES.numpy(), WEIGHT], "batch_size": COUNT,
        "seed": INTEGER, "steps": but(COUNT, None), "learning_rate": ["a"], "label_smoothing": ["a", 2]}),
    ("extract_features", lambda **o: spurmix.extract_features(**{"model": MODEL, "source": FEATURES, **o}), {
        "model": [None, "resnet50"], "source": ["a", LABELS], "batch_size": COUNT, "device": DEVICE, "progress": but(FLAG, None)}),
    ("evaluate", evaluate, {
        "model": [None, "resnet50"], "source": ["a", LABELS], "groups": [None, LABELS, GroupIndex([0])], "batch_size": COUNT,
        "train_groups": ["a", LABELS], "membership": ["a", FEATURES, torch.ones(2, 2, dtype=torch.bool)], "cell_names": ["ab"],
        "min_group_size": [*COUNT, 99], "device": DEVICE, "sharded": FLAG}),
    ("export_onnx", export, {
        "model": [None, "resnet50"], "path": PATH, "source": ["a"], "groups": [None, LABELS], "class_names": [*NAMES, ["a"]],
        "train_groups": ["a"], "tokenizer": ["a"], "min_group_size": COUNT, "tolerance": POSITIVE, "batch_size": COUNT, "opset": COUNT}),
    ("Predictor", spurmix.Predictor, {"path": [*PATH, "nowhere.onnx"]}),
    ("read_civilcomments", lambda **o: spurmix.read_civilcomments(**{"path": "nowhere", **o}), {
        "path": PATH, "attribute": [None, 3], "identities": [*NAMES, [], ["male", "male"]], "drop_empty": FLAG}),
    ("MixedInputs", lambda **o: spurmix.MixedInputs(**{"model": MODEL, **o}), {"model": [None, MODEL], "mix_at": ["head", None, 3]}),
    ("small_resnet", lambda **o: models.small_resnet(**{"num_classes": 2, **o}), {"num_classes": COUNT, "channels": COUNT, "width": COUNT}),
    ("resnet50", lambda **o: models.resnet50(**{"num_classes": 2, **o}), {"num_classes": COUNT, "channels": COUNT, "weights": [5, b"x"]}),
    ("bert", lambda **o: models.bert(**{"num_classes": 2, **o}), {"num_classes": COUNT, "pretrained": [5, b"x", "nowhere"]}),
    ("minilm", lambda **o: models.minilm(**{"num_classes": 2, **o}), {"num_classes": COUNT, "dropout": SHARE}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "values"), [
    pytest.param(call, argument, values, id=f"{name}-{argument}") for name, call, table in TABLE for argument, values in table.items()
])  # fmt: skip
def test_error_names_the_argument(call: Callable[..., Any], argument: str, values: list[Any]) -> None:
    check(call, argument, values)


def check(call: Callable[..., Any], argument: str, values: list[Any]) -> None:
    unnamed = []
    for value in values:
        try:
            call(**{argument: value})
        except (TypeError, ValueError) as error:
            if not re.search(rf"(?<![\w']){argument}(?!\w)", str(error)):
                unnamed.append(f"{value!r}: {type(error).__name__}: {error}")
        except Exception as error:
            unnamed.append(f"{value!r}: {type(error).__name__}: {error}")
        else:
            unnamed.append(f"{value!r} is accepted")
    assert not unnamed, "\n".join(unnamed)


def test_error_names_the_argument_of_functions_that_read_files(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    metadata = Metadata(np.array(LABELS), ["train"] * 6, list("abcdef"), {}, ("x", "y"), {})
    write_metadata(tmp_path, metadata)
    write_description(tmp_path, "images", metadata, {})
    packed = spurmix.PackedDataset(tmp_path)
    model = export(path=tmp_path / "model.onnx").path
    table: list[tuple[Callable[..., Any], dict[str, list[Any]]]] = [
        (packed.source, {"window": but(INTEGER, None), "tier": ["disc", 3, True], "device": DEVICE, "memory": but(INTEGER, None), "reserve": but(INTEGER, None)}),
        (lambda **o: packed.part(**{"begin": 0, "end": 3, **o}), {"begin": NOT_INTEGER, "end": NOT_INTEGER}),
        (lambda **o: packed.split(*o.values()), {"split": ["val", None, 3, ["train"]]}),
        (packed.groups, {"attribute": ["place", 3, ["place"]]}),
        (lambda **o: spurmix.Predictor(model, **o), {"threads": but(COUNT, None), "providers": [*NAMES, ["Nobody"], []]}),
    ]  # fmt: skip
    for call, arguments in table:
        for argument, values in arguments.items():
            check(call, argument, values)
    spurmix.Predictor(model, threads=1, providers=["CPUExecutionProvider"])


def test_calls_succeed_with_valid_arguments(tmp_path: Path) -> None:
    """Otherwise a call of the table could fail for another reason than its invalid value."""
    for name, call, _ in TABLE:
        more = {
            "Fixed": {"value": 0.5}, "InverseCDF": {"function": np.sqrt}, "set_step": {"step": 0}, "batch": {"step": 0},
            "load_state_dict": {"state": loader(steps=3).state_dict()}, "ImageSource.to": {"device": "cpu"},
            "FeatureSource.to": {"device": "cpu"}, "FeatureSource": {"features": FEATURES}, "upweight": {"factors": [1] * 4},
            "TokenSource.from_lists": {"texts": [[1]]}, "export_onnx": {"path": tmp_path / "model.onnx"},
        }.get(name, {})  # fmt: skip
        if name not in (
            "PackedDataset",
            "Predictor",
            "read_civilcomments",
            "MixedInputs",
            "TokenSource.from_texts",
            "minilm",
            "resnet50",
            "bert",
        ):
            call(**more)  # the others need files or take long


def test_integers_and_numbers_of_other_types_are_accepted() -> None:
    made = loader(batch_size=np.int32(2), steps=torch.tensor(3), seed=np.uint8(1), prefetch=np.int64(0), copy=np.True_)
    assert (made.batch_size, made.steps, made.copy) == (2, 3, True) and type(made.steps) is int
    assert Beta(np.float32(2)) == Beta(2) and Fixed(torch.tensor(0.5)) == Fixed(0.5)
    assert F.mix_labels(LABEL, LABEL, LAM, np.int64(2)).shape == (2, 2)
    ImageSource(IMAGES, mean=np.array([0.5, 0.4, 0.3]), std=np.float64(0.2))

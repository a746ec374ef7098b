"""The stages of a method: settings of its runs, groups of the second training, and retraining of the head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.train.afr import retrain_afr
from spurmix.train.evaluation import Evaluation
from spurmix.train.head import extract_features, retrain_head
from spurmix.train.heads.options import HeadOptions
from spurmix.train.heads.result import HeadFit
from spurmix.train.infer import error_groups, find_errors
from spurmix.train.runs.config import RunConfig
from spurmix.train.runs.data import SplitData, dataset_of, evaluate_split
from spurmix.train.runs.files import MODEL, read_finished
from spurmix.train.runs.methods import Method
from spurmix.train.runs.retrain import HeadSource, RetrainedHead, check_target, write_retrained
from spurmix.train.runs.run import Regroup, TrainingRun, describe_run

HELD_OUT = 5
"""AFR holds out one of this number of training examples of each class."""


@dataclass(frozen=True)
class HeadOutcome:
    """Result of the second stage of a method that retrains the head.

    Attributes:
        head: The fitted head.
        evaluations: Evaluation of each held-out split, by name.
    """

    head: HeadFit
    evaluations: dict[str, Evaluation]


def first_stage(config: RunConfig, method: Method) -> tuple[RunConfig, Regroup | None]:
    """Return the settings of the first training, and the function that makes the groups that its batches are drawn by.

    Args:
        config: Settings of the recipe and the method.
        method: The method.

    Returns:
        The settings and the function, or None for the groups of the dataset.
    """
    if method.head != "afr":
        return config, None
    share = 1 - 1 / HELD_OUT  # so that an epoch is a pass over the examples that are trained on

    def without_held_out(groups: GroupIndex) -> GroupIndex:
        held_out = _held_out(groups, config.seed)
        return GroupIndex(groups.labels, np.where(held_out, UNKNOWN, 0), class_names=groups.class_names)

    options = {**config.policy_options, "attributed_only": True}
    return dataclasses.replace(config, epochs=share * config.epochs, policy_options=options), without_held_out


def _held_out(groups: GroupIndex, seed: int) -> NDArray[np.bool_]:
    """Mask of the training examples that AFR holds out."""
    mask = np.zeros(groups.num_examples, dtype=bool)
    rng = np.random.default_rng([seed, 2])
    for label in np.unique(groups.labels):
        own = rng.permutation(np.flatnonzero(groups.labels == label))
        mask[own[: len(own) // HELD_OUT]] = True
    return mask


def regroup_errors(run: TrainingRun) -> Regroup:
    """Return the function that makes the groups of the second training of JTT.

    Args:
        run: The first run, trained.

    Returns:
        The function.

    Raises:
        ValueError: If the model of the run has no errors.
    """
    errors = find_errors(
        run.model, run.train.source, run.train.groups, batch_size=run.config.evaluation_batch,
        device=run.processes.device, sharded=run.processes.count > 1,
    )  # fmt: skip
    error_groups(run.train.groups, errors)  # checks before a folder is written
    return lambda groups: error_groups(groups, errors)


def retrain_stage(
    run: TrainingRun, method: Method, out: Path, *, finished: bool = False, progress: bool | None = None
) -> HeadOutcome:
    """Retrain the head of the model of the first stage, evaluate it, and write it as a run.

    Args:
        run: The first run, trained. Its model is changed.
        method: The method.
        out: Folder to create.
        finished: If True, `out` has the result of this stage, which is only evaluated.
        progress: Whether to show progress bars. Default: only on a terminal.

    Returns:
        The result.

    Raises:
        ValueError: If the run has no validation split, the data does not fit the method, or the folder cannot be written.
    """
    name = method.head
    assert name is not None
    validation = run.held_out.get(run.config.validation_split)
    if validation is None:
        raise ValueError(f"{name} requires a validation split with known attributes; the run has none")
    if finished:
        read_finished(out / MODEL, run.model)
        head = HeadFit(name, torch.empty(0), torch.empty(0), None, ())
        run.model.to(run.processes.device)
    else:
        check_target(out)
        head = _fit(run, method, validation, progress)
    evaluations = {
        split: evaluate_split(run.config, run.model, data, run.train.groups, run.processes)
        for split, data in run.held_out.items()
    }
    if not finished:
        dataset = dataset_of(run.config)
        about = describe_run(run.config, dataset, run.train.groups, run.model)
        result = RetrainedHead(out, name, head.trials, head.best)
        write_retrained(
            result, HeadSource(run.folder, run.config, dataset, run.model), run.config, {**about, "step": 0}, {}
        )
    return HeadOutcome(head, evaluations)


def _fit(run: TrainingRun, method: Method, validation: SplitData, progress: bool | None) -> HeadFit:
    """Fit the head on the examples that the publication of the method uses."""
    train, model = run.train, run.model
    if method.head == "afr":
        held_out = torch.from_numpy(np.flatnonzero(_held_out(train.groups, run.config.seed)))
        features = extract_features(model, train.source, progress=progress)[held_out]
        part = GroupIndex(train.groups.labels[held_out.numpy()], class_names=train.groups.class_names)
        given = {name: values for name, values in (("gamma", method.gamma), ("l2", method.l2)) if values}
        return retrain_afr(
            model, train.source, part, features=features, validation=(validation.source, validation.groups),
            progress=progress, **given,
        )  # fmt: skip
    options = HeadOptions(seed=run.config.seed)
    features = extract_features(model, validation.source, progress=progress)
    if method.head == "dfr":
        return retrain_head(
            model, validation.source, validation.groups, method="dfr", features=features, head_options=options,
            progress=progress,
        )  # fmt: skip
    bulk = extract_features(model, train.source, progress=progress)
    attributes = validation.groups.spurious_attributes
    assert attributes is not None
    groups = GroupIndex(
        np.concatenate([train.groups.labels, validation.groups.labels]),
        np.concatenate([np.full(train.groups.num_examples, UNKNOWN), attributes]),
        class_names=train.groups.class_names, attribute_names=validation.groups.attribute_names,
    )  # fmt: skip
    return retrain_head(
        model, train.source, groups, method="dispel", features=torch.cat([bulk, features]), head_options=options,
        progress=progress,
    )  # fmt: skip

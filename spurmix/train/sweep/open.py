"""The model and the data of `spurmix sweep`: a packed dataset, or a finished run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from spurmix.core import policies
from spurmix.train.finetune import finetune
from spurmix.train.runs.config import RunConfig, resolve
from spurmix.train.runs.data import complete, dataset_of, read_split
from spurmix.train.runs.files import CONFIG, tensors_digest
from spurmix.train.runs.finished import open_run
from spurmix.train.runs.model import build_model
from spurmix.train.runs.processes import Processes
from spurmix.train.runs.run import make_loader
from spurmix.train.sweep.task import SweepTask


def open_task(
    source: Path,
    changes: Mapping[str, object],
    settings: Path | None,
    pretrain_epochs: float | None,
    processes: Processes,
) -> tuple[SweepTask, str]:
    """Open the model and the data that all methods share.

    Args:
        source: Folder of a packed dataset, or of a finished run, whose model is the pre-trained one.
        changes: Settings that differ from those of the run, or from the defaults.
        settings: TOML file with further settings.
        pretrain_epochs: Epochs of pre-training by ERM for a dataset. Default: a third of the epochs of each method.
        processes: This process, and its device.

    Returns:
        The task, and a digest of everything that results depend on.

    Raises:
        ValueError: If the folder has neither, there is no validation or test split, or a setting is invalid.
    """
    model = None
    if (source / CONFIG).is_file():
        if pretrain_epochs is not None:
            raise ValueError("--pretrain-epochs is for a dataset; the model of a run is already trained")
        opened = open_run(source)
        model, dataset = opened.model, opened.dataset
        config = dataclasses.replace(opened.config, dataset=str(dataset.path))
        config = complete(resolve(changes, settings, base=config), dataset)
    else:
        config = resolve({**changes, "dataset": str(source)}, settings)
        dataset = dataset_of(config)
        config = complete(config, dataset)
    for name in ("validation_split", "test_split"):
        if getattr(config, name) == "none":
            raise ValueError(f"{name}: sweep requires a validation split and a test split; {dataset.path} has "
                             f"{', '.join(dataset.splits)}; name one by --setting {name}=NAME")  # fmt: skip
    config = dataclasses.replace(config, policy="erm", policy_options={}, objective="erm")
    if model is None:
        model = build_model(config, dataset).to(processes.device)
        train = read_split(config, dataset, config.train_split, model, processes.device)
        epochs = config.epochs / 3 if pretrain_epochs is None else pretrain_epochs
        if epochs > 0:
            shorter = dataclasses.replace(config, steps=0, epochs=epochs)
            loader = make_loader(shorter, train, policies.erm(), processes)
            finetune(model, loader, options=shorter.finetune_options(), progress=processes.progress)
    else:
        model = model.to(processes.device)
        train = read_split(config, dataset, config.train_split, model, processes.device)
    validation, test = (read_split(config, dataset, n, model) for n in (config.validation_split, config.test_split))
    start = tensors_digest({name: value.cpu() for name, value in model.state_dict().items()})
    digest = protocol_digest(config, {"dataset": dataset.digest(), "model": start})
    return SweepTask(config, model, train, validation, test, processes), digest


def protocol_digest(config: RunConfig, further: Mapping[str, object]) -> str:
    """Digest of the settings of a comparison, and of further values that its results depend on."""
    settings = {name: value for name, value in vars(config).items() if name not in ("dataset", "device", "prefetch")}
    text = json.dumps([settings, dict(further)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

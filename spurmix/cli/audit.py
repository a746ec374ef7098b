"""`spurmix audit`: computes the correlation that a policy leaves."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from spurmix.cli.correlations import NAMES, default_policies
from spurmix.cli.options import AttributeOption, DatasetArgument, JsonOption
from spurmix.cli.terminal import show
from spurmix.core import checks


def audit(
    dataset: DatasetArgument,
    policy: Annotated[str, typer.Option(help=f"Policy to audit: {', '.join(NAMES)}.")] = "balance_attributes",
    attribute: AttributeOption = None,
    split: Annotated[str, typer.Option(help="Split to audit.")] = "train",
    as_json: JsonOption = False,
) -> None:
    """Show the correlation of class and attribute that remains after mixing with a policy, without any training."""
    from spurmix.data.dataset.packed import PackedDataset

    checks.choice(policy, "--policy", NAMES)
    result = default_policies()[policy].audit(PackedDataset(dataset).split(split).groups(attribute))
    show(json.dumps(result.to_dict(), indent=1) if as_json else result, lines=True)

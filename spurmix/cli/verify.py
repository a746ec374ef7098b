"""`spurmix verify`: checks the contents of a packed dataset."""

from __future__ import annotations

from spurmix.cli.options import DatasetArgument
from spurmix.cli.terminal import show


def verify(dataset: DatasetArgument) -> None:
    """Check the contents of a packed dataset against its checksums."""
    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.data.pack.job import counted

    opened = PackedDataset(dataset)
    damages = opened.verify()
    for damage in damages:
        show(damage)
    if damages:
        raise ValueError(f"{dataset} is damaged in {counted(len(damages), 'place')}; pack it again")
    show(f"{opened}: all checksums match")

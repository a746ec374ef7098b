"""Texts and samples of a demo's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spurmix.data.batch import Batch
    from spurmix.data.sources.arrays import ImageSource


@dataclass(frozen=True)
class ReportText:
    """The task-specific texts of a page.

    Args:
        title: Heading of the page.
        data: The data, and the bias that the model learns from it.
        attribute: Name of the spurious attribute.
        file: What the exported file accepts; continues a sentence that starts with its name.
    """

    title: str
    data: str
    attribute: str
    file: str


@dataclass(frozen=True)
class TextSample:
    """A training sample mixed from two texts.

    Args:
        lam: Weight of the first text.
        text: First text.
        label: Class of the first text.
        partner: Second text.
        partner_label: Class of the second text.
    """

    lam: float
    text: str
    label: str
    partner: str
    partner_label: str


@dataclass(frozen=True)
class ImageSamples:
    """A batch of mixed images.

    Args:
        source: Source of the images. Its mean and standard deviation undo the normalization.
        batch: At least 16 samples.
        class_names: Names of the classes. None shows their numbers.
    """

    source: ImageSource
    batch: Batch
    class_names: Sequence[str] | None

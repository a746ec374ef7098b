"""A split of the demo's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Examples = TypeVar("Examples", list[str], NDArray[np.uint8])


@dataclass(frozen=True)
class DemoSplit(Generic[Examples]):
    """Examples with their classes and attributes.

    Args:
        examples: N texts, or images uint8 `[N, 32, 32, 3]`.
        label: Classes, int64 `[N]`.
        attribute: Attributes, int64 `[N]`.
        origin: Number of the digit or text that each example was made from, int64 `[N]`.
    """

    examples: Examples
    label: NDArray[np.int64]
    attribute: NDArray[np.int64]
    origin: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> DemoSplit[Examples]:
        """Return some of the examples.

        Args:
            rows: Their numbers, int64 `[M]`.

        Returns:
            The M examples.
        """
        examples = [self.examples[i] for i in rows] if isinstance(self.examples, list) else self.examples[rows]
        return DemoSplit(examples, self.label[rows], self.attribute[rows], self.origin[rows])

"""Writes report.html from a template."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from spurmix.core.audit import MEANING_OF_ZERO, correlation_text
from spurmix.core.names import distinct_names, without_controls
from spurmix.train.runs.files import write_text


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _clean(value: object) -> object:
    """Remove control characters from a value that the template inserts. Markup of the template stays as it is."""
    return without_controls(value, keep="\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


def _with_names(rows: Sequence[_Named]) -> list[tuple[_Named, str]]:
    """Pair the rows of a table with their names. Names that a page would show alike are shown with repr."""
    return list(zip(rows, distinct_names([row.name for row in rows]), strict=True))


def _shown(name: str, rows: Iterable[_Named]) -> str:
    return distinct_names([name], [row.name for row in rows])[0]


def write_page(out: Path, template: str, pictures: list[Path], **values: object) -> None:
    """Write report.html, a single file that includes the pictures.

    Args:
        out: Folder to write to.
        template: Name of the template.
        pictures: PNG files. The template finds them by name without suffix.
        **values: Other values for the template.

    Raises:
        ImportError: If jinja2 is missing.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ImportError("report.html needs the package 'jinja2': pip install 'spurmix[demo]'") from error
    loader = jinja2.PackageLoader("spurmix.cli.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["decimal"] = lambda value: "not determined" if math.isnan(value) else f"{value:.3f}"
    environment.filters["zip"] = lambda rows, others: list(zip(rows, others, strict=True))
    environment.filters["with_names"] = _with_names
    environment.filters["shown"] = _shown
    environment.filters["correlation"] = lambda value: correlation_text(value, 3)
    environment.globals["meaning_of_zero"] = MEANING_OF_ZERO[0].upper() + MEANING_OF_ZERO[1:]
    encoded = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in pictures}
    write_text(out / "report.html", environment.get_template(template).render(pictures=encoded, **values))

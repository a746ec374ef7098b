"""`spurmix inspect`: shows the contents of a packed dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.correlations import residual_correlations
from spurmix.cli.options import AttributeOption, DatasetArgument
from spurmix.cli.terminal import cell
from spurmix.core.audit import MEANING_OF_ZERO, correlation_text, unknown_warnings
from spurmix.core.files import discard
from spurmix.core.names import without_controls

if TYPE_CHECKING:
    from spurmix.core.groups import GroupIndex
    from spurmix.data.dataset.packed import PackedDataset


def inspect(
    dataset: DatasetArgument,
    attribute: AttributeOption = None,
    split: Annotated[str | None, typer.Option(help="Split to show.", show_default="first split")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG file to write with the first images of each group.")] = None,
) -> None:
    """Show a packed dataset: its size, its groups, and the correlation of class and attribute that each policy leaves."""
    from rich.console import Console
    from rich.table import Table

    from spurmix.data.dataset.packed import PackedDataset

    opened = PackedDataset(dataset)
    console = Console()
    size = sum(f.stat().st_size for f in opened.path.iterdir() if f.is_file())
    console.print(cell(f"{opened}, {size / 2**20:,.1f} MiB"), soft_wrap=True)
    console.print(cell("splits: " + ", ".join(f"{name} {count:,}" for name, count in opened.splits.items())))
    name = split if split is not None else next(iter(opened.splits))
    part = opened.split(name)
    groups = part.groups(attribute)
    table = Table(
        "group", "label", "attribute", "count", "share", title=cell(f"groups of {name}"), title_justify="left"
    )
    rows = groups.table()
    for row, *names in zip(rows, rows.names("label"), rows.names("attribute"), strict=True):
        table.add_row(str(row["group"]), *map(cell, names), f"{row['count']:,}", f"{100 * row['share']:.2f}%")
    console.print(table)
    raw, audits = residual_correlations(groups)
    table = Table(
        "policy",
        "correlation after mixing",
        "given lam",
        title=f"correlation of class and attribute: {correlation_text(raw, 3)}",
        title_justify="left",
    )
    for policy, result in audits.items():
        if isinstance(result, str):
            table.add_row(policy, cell(result))
        else:
            values = (correlation_text(value, 3) for value in (result.residual, result.residual_given_lam))
            table.add_row(policy, *values)
    console.print(table)
    console.print(cell(f"{MEANING_OF_ZERO[0].upper()}{MEANING_OF_ZERO[1:]}."), soft_wrap=True)
    for note in unknown_warnings(groups):
        console.print(cell(f"note: {note}"), soft_wrap=True)
    if sheet is not None:
        write_contact_sheet(part, groups, sheet)
        console.print(cell(f"wrote {sheet}: the first images of each group"), soft_wrap=True)


def write_contact_sheet(part: PackedDataset, groups: GroupIndex, path: Path, columns: int = 8, side: int = 96) -> None:
    """Write a PNG with a row of images for each group, below the name of the group.

    Args:
        part: Dataset or split with images.
        groups: Groups of `part`.
        path: File to write.
        columns: Number of images per group.
        side: Width and height of an image, in pixels.

    Raises:
        ValueError: If the dataset does not hold images, or the file cannot be written.
    """
    from spurmix.data.pack.decode import import_pillow

    if part.kind != "images":
        raise ValueError(f"--sheet is for images; this dataset holds {part.kind}")
    if path.is_dir() or not path.name:
        raise ValueError(f"--sheet must be a PNG file to write, got the folder {path}")
    library, _ = import_pillow()
    from PIL import ImageDraw

    head = 18
    canvas = library.new("RGB", (columns * side, groups.num_groups * (side + head)), "white")
    pen = ImageDraw.Draw(canvas)
    ids, array = groups.group_ids(), part.array
    for g in range(groups.num_groups):
        top = g * (side + head)
        name = without_controls(groups.group_name(g))
        pen.text((4, top + 3), f"{name}: {int(groups.sizes[g]):,} images", fill="black")
        for k, row in enumerate((ids == g).nonzero()[0][:columns]):
            canvas.paste(library.fromarray(array[row]).resize((side, side)), (k * side, top + head))
    temporary = path.with_name(f".{path.name}.part")
    try:
        canvas.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        discard(temporary)
        raise ValueError(f"--sheet: cannot write {path} ({error.strerror or error})") from None

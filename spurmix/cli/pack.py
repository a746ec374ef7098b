"""`spurmix pack`: packs images or texts into a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.correlations import attribute_notes
from spurmix.cli.options import ShardOption, TargetArgument, parse_shard, print_merge_command
from spurmix.cli.terminal import show
from spurmix.core import checks

if TYPE_CHECKING:
    from spurmix.data.pack.manifest import Manifest


class Layout(StrEnum):
    """Layouts that `spurmix pack` reads."""

    folder = "folder"
    table = "table"
    waterbirds = "waterbirds"
    celeba = "celeba"
    mnist = "mnist"
    civilcomments = "civilcomments"
    huggingface = "huggingface"


@dataclass(frozen=True)
class Selection:
    """Options that select what to read. The defaults are those of the command."""

    root: str | None = None
    path_column: str = "path"
    text: str | None = None
    label: str = "label"
    attribute: tuple[str, ...] = ()
    split: str | None = None
    attribute_table: str | None = None
    unlisted: str = "unknown"

    def changed(self) -> list[str]:
        """Return the options that differ from the defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


COLUMNS = {"path_column", "text", "label", "attribute", "split"}
ACCEPTED: dict[Layout, set[str]] = {
    Layout.folder: {"attribute_table"},
    Layout.table: COLUMNS | {"root"},
    Layout.waterbirds: set(),
    Layout.celeba: {"label", "attribute"},
    Layout.mnist: set(),
    Layout.civilcomments: {"attribute"},
    Layout.huggingface: COLUMNS,
}
"""Fields of `Selection` that each layout uses."""
LISTED = {"path_column", "attribute", "unlisted"}
"""Fields of `Selection` that describe `--attribute-table`."""


def check_layout(layout: Layout, selection: Selection) -> None:
    """Check that the layout uses all options that were given.

    Args:
        layout: Layout of the source.
        selection: The options.

    Raises:
        ValueError: If the layout ignores an option.
    """
    accepted_here = ACCEPTED[layout]
    if layout is Layout.folder and selection.attribute_table is not None:
        accepted_here = accepted_here | LISTED
    elif "unlisted" in selection.changed():
        raise ValueError("--unlisted requires --attribute-table")
    for name in selection.changed():
        if name not in accepted_here:
            layouts = ", ".join(known for known, accepted in ACCEPTED.items() if name in accepted)
            raise ValueError(f"--{name.replace('_', '-')} is for --layout {layouts}, not {layout}")
    if layout is Layout.civilcomments and len(selection.attribute) > 1:
        raise ValueError("--attribute: civilcomments accepts one attribute to train on; it packs all identities anyway")


def check_kind(texts: bool, image_options: Mapping[str, object], text_options: Mapping[str, object]) -> None:
    """Check that the options fit the kind of data.

    Args:
        texts: Whether texts are packed, or else images.
        image_options: Values of options for images. An option with a false value was not given.
        text_options: Values of options for texts.

    Raises:
        ValueError: If an option has no effect.
    """
    for name, value in (image_options if texts else text_options).items():
        if value and texts:
            raise ValueError(f"--{name} is for images, but texts are packed")
        if value:
            raise ValueError(f"--{name} is for texts; select their column with --text")


def read_manifest(source: str, layout: Layout, selection: Selection, drop_empty: bool = False) -> Manifest:
    """Read the manifest of a source.

    Args:
        source: Folder, file, URL or name of a dataset.
        layout: Layout of the source.
        selection: What to read.
        drop_empty: Whether to leave out comments of CivilComments without text.

    Returns:
        The manifest.
    """
    label, attributes = selection.label, selection.attribute
    if layout is Layout.table:
        from spurmix.data.pack.layouts.table import from_table

        return from_table(
            source, selection.root, path=selection.path_column, text=selection.text, label=label,
            attributes=attributes, split=selection.split,
        )  # fmt: skip
    if layout is Layout.waterbirds:
        from spurmix.data.pack.layouts.waterbirds import from_waterbirds

        return from_waterbirds(source)
    if layout is Layout.celeba:
        from spurmix.data.pack.layouts.celeba import from_celeba

        target = label if label != Selection.label else "Blond_Hair"
        return from_celeba(source, target=target, attributes=attributes or ["Male"])
    if layout is Layout.mnist:
        from spurmix.data.pack.layouts.mnist import from_mnist

        return from_mnist(source)
    if layout is Layout.civilcomments:
        from spurmix.data.pack.layouts.civilcomments import from_civilcomments

        return from_civilcomments(source, attribute=attributes[0] if attributes else "any", drop_empty=drop_empty)
    if layout is Layout.huggingface:
        from spurmix.data.pack.huggingface import from_huggingface

        image = selection.path_column if selection.path_column != Selection.path_column else None
        return from_huggingface(
            source, image=image, text=selection.text, label=label, attributes=attributes, split=selection.split
        )
    from spurmix.data.pack.layouts.folder import from_folder

    manifest = from_folder(source)
    if selection.attribute_table is None:
        return manifest
    from spurmix.data.pack.layouts.listed import with_listed_attributes

    return with_listed_attributes(
        manifest, selection.attribute_table, path=selection.path_column, attributes=attributes,
        unlisted="absent" if selection.unlisted == "absent" else "unknown",
    )  # fmt: skip


def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or fsspec URL of the dataset. For table: a CSV or Parquet file. For huggingface: a folder, a "
            "file, or the name of a dataset on the Hub, which is downloaded."
        ),
    ],
    target: TargetArgument,
    layout: Annotated[Layout, typer.Option(help="Layout of the source.")] = Layout.folder,
    root: Annotated[
        str | None,
        typer.Option(help="table: folder that paths are relative to.", show_default="folder of the table"),
    ] = None,
    path_column: Annotated[
        str,
        typer.Option(
            help="table, --attribute-table: column with the image paths. huggingface: column with the images.",
            show_default="path; huggingface: the only image column",
        ),
    ] = "path",
    text: Annotated[
        str | None, typer.Option(help="table, huggingface: column with the texts. Packs texts instead of images.")
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            help="table, huggingface: column with the class. celeba: column to predict.",
            show_default="label; celeba: Blond_Hair",
        ),
    ] = "label",
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            help="table, huggingface, celeba: column with an attribute. Repeat the option for several; the first "
            "defines the groups. Strings such as NA mean unknown. civilcomments: identity that defines the groups.",
            show_default="celeba: Male; civilcomments: any identity",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="table, huggingface: column with the split.")] = None,
    attribute_table: Annotated[
        str | None,
        typer.Option(
            help="folder: CSV or Parquet file with the paths of images and the columns given by --attribute. Without "
            '--attribute, a list of the images that show a spurious feature. It becomes the attribute "feature".'
        ),
    ] = None,
    unlisted: Annotated[
        str,
        typer.Option(help='Attribute "feature" of images that the list does not contain: "unknown" or "absent".'),
    ] = "unknown",
    size: Annotated[
        int | None,
        typer.Option(help="Images: height and width in pixels.", min=1, show_default="224; mnist: 28"),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(help='Images: "crop" keeps the aspect ratio and crops the center, "exact" stretches the image.'),
    ] = "crop",
    background: Annotated[
        str, typer.Option(help="Images: color behind transparent pixels, a name or #rrggbb.")
    ] = "white",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Texts: folder with the tokenizer files of transformers or tokenizers. Required for texts."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Texts: maximum number of tokens. Longer texts are truncated.",
            min=1,
            show_default="limit of the tokenizer",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Images: number of threads.", min=1, show_default="number of CPU cores + 1"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of examples per split.", min=1, show_default="all")
    ] = None,
    broken: Annotated[
        str,
        typer.Option(
            help='Unreadable images or texts: "error" stops with a list of them, "skip" leaves them out.',
        ),
    ] = "error",
    shard: ShardOption = None,
) -> None:
    """Pack images or texts into a dataset that opens at once.

    Run the same command again to resume an interrupted job.
    """
    from spurmix.data.pack.job import BrokenFiles

    checks.choice(unlisted, "--unlisted", ("unknown", "absent"))
    selection = Selection(root, path_column, text, label, tuple(attribute or ()), split, attribute_table, unlisted)
    texts = layout is Layout.civilcomments or text is not None
    check_layout(layout, selection)
    check_kind(
        texts,
        {
            "size": size,
            "fit": fit != "crop",
            "workers": workers,
            "path-column": path_column != "path",
            "root": root,
            "background": background != "white",
        },
        {"tokenizer": tokenizer, "max-length": max_length},
    )
    if texts and tokenizer is None:
        raise ValueError("--tokenizer is required to pack texts; give the folder of a tokenizer")
    number = parse_shard(shard)
    manifest = read_manifest(source, layout, selection, broken == "skip")
    for note in (*manifest.notes, *attribute_notes(manifest.metadata)):
        show(note)
    try:
        if texts:
            from spurmix.data.pack.texts import pack_texts

            assert tokenizer is not None
            report = pack_texts(
                manifest, target, tokenizer, max_length=max_length, limit=limit, broken=broken, shard=number
            )
        else:
            from spurmix.data.pack.images import pack_images

            pixels = size or (28 if layout is Layout.mnist else 224)
            report = pack_images(
                manifest, target, size=pixels, fit=fit, workers=workers, limit=limit, broken=broken, shard=number,
                background=background,
            )  # fmt: skip
    except BrokenFiles as error:
        raise ValueError(str(error).replace("broken='skip'", "--broken skip")) from None
    show(report, lines=True)
    print_merge_command(target, number)

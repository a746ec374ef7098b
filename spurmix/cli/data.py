"""Commands on packed datasets: pack, merge, verify, inspect, audit."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy

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


Source = Annotated[
    str,
    typer.Argument(
        help="Folder of the images or fsspec URL; for table the CSV or Parquet file; for huggingface a folder, a file, or "
        "a name on the hub, from which it is downloaded."
    ),
]
Dataset = Annotated[Path, typer.Argument(help="Folder of a packed dataset.")]
Shard = Annotated[
    str | None,
    typer.Option(
        help="i/n: the i-th of n parts, 0/n to (n - 1)/n; default: all, under torchrun this process's; see merge."
    ),
]


def manifest_of(
    source: str,
    layout: Layout,
    root: str | None,
    columns: dict[str, Any],
    attributes: list[str],
    drop_empty: bool = False,
) -> Manifest:
    """Return the manifest that the options of `spurmix pack` select."""
    if layout is Layout.table:
        from spurmix.data.pack.layouts.table import from_table

        return from_table(source, root, attributes=attributes, **columns)
    if layout is Layout.waterbirds:
        from spurmix.data.pack.layouts.waterbirds import from_waterbirds

        return from_waterbirds(source)
    if layout is Layout.celeba:
        from spurmix.data.pack.layouts.celeba import from_celeba

        label = columns["label"] if columns["label"] != "label" else "Blond_Hair"
        return from_celeba(source, target=label, attributes=attributes or ["Male"])
    if layout is Layout.mnist:
        from spurmix.data.pack.layouts.mnist import from_mnist

        return from_mnist(source)
    if layout is Layout.civilcomments:
        from spurmix.data.pack.layouts.civilcomments import from_civilcomments

        return from_civilcomments(source, attribute=attributes[0] if attributes else "any", drop_empty=drop_empty)
    if layout is Layout.huggingface:
        from spurmix.data.pack.huggingface import from_huggingface

        image = columns["path"] if columns["path"] != "path" else None
        columns = {name: columns[name] for name in ("text", "label", "split")}
        return from_huggingface(source, image=image, attributes=attributes, **columns)
    from spurmix.data.pack.layouts.folder import from_folder

    return from_folder(source)


_COLUMNS = {"path-column", "text", "label", "attribute", "split"}
_USES: dict[Layout, set[str]] = {
    Layout.folder: set(),
    Layout.table: _COLUMNS | {"root"},
    Layout.waterbirds: set(),
    Layout.celeba: {"label", "attribute"},
    Layout.mnist: set(),
    Layout.civilcomments: {"attribute"},
    Layout.huggingface: _COLUMNS,
}
"""Options that say what is read, by the layouts that look at them."""


def check_options(layout: Layout, texts: bool, given: dict[str, Any]) -> None:
    """Refuse options that would be passed over; given: those that are not as they are by default, by name."""
    for name in given:
        if name not in _USES[layout] and name in _COLUMNS | {"root"}:
            fits = ", ".join(known for known, uses in _USES.items() if name in uses)
            raise ValueError(f"--{name} is for --layout {fits}, not {layout}")
        if texts and name in ("size", "fit", "workers", "path-column", "root"):
            raise ValueError(f"--{name} is for images")
    if layout is Layout.civilcomments and len(given.get("attribute", [])) > 1:
        raise ValueError("--attribute: of civilcomments one is trained on, the identities are kept anyway")


def pack(
    source: Source,
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    layout: Annotated[Layout, typer.Option(help="How the source is laid out.")] = Layout.folder,
    root: Annotated[str | None, typer.Option(help="table: folder the paths are relative to.")] = None,
    path_column: Annotated[
        str, typer.Option(help="table: column of the paths; huggingface: of the images, if several are.")
    ] = "path",
    text: Annotated[str | None, typer.Option(help="table, huggingface: column of texts, which are tokenised.")] = None,
    label: Annotated[str, typer.Option(help="table, huggingface: column of the class; celeba: the target.")] = "label",
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            help="table, huggingface, celeba: column of an attribute, the spurious one first; may be repeated. "
            "civilcomments: the one to train on; default: any identity."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="table, huggingface: column of the split.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width in pixels; default: 224, of mnist 28.", min=1)
    ] = None,
    fit: Annotated[str, typer.Option(help='"crop": cover and cut out the centre; "exact": stretch.')] = "crop",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Texts: folder of the tokenizer, as transformers or tokenizers wrote it.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Texts: tokens kept of a longer one; default: the tokenizer's limit.", min=1)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one more than cores.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many examples of each split.", min=1)] = None,
    broken: Annotated[str, typer.Option(help='Images and texts that cannot be read: "error" or "skip".')] = "error",
    shard: Shard = None,
) -> None:
    """Pack images or texts into a dataset that opens at once. A job that was killed goes on when it is started again."""
    texts = layout is Layout.civilcomments or text is not None
    options = {
        "root": (root, None), "path-column": (path_column, "path"), "text": (text, None), "label": (label, "label"),
        "attribute": (attribute, None), "split": (split, None), "size": (size, None), "fit": (fit, "crop"),
        "workers": (workers, None),
    }  # fmt: skip
    check_options(layout, texts, {name: value for name, (value, usual) in options.items() if value not in (usual, [])})
    if texts and tokenizer is None:
        raise ValueError("--tokenizer: texts need the folder of a tokenizer")
    if not texts and (tokenizer is not None or max_length is not None):
        raise ValueError("--tokenizer and --max-length are for texts; name their column with --text")
    part = shard_of(shard)
    columns = {"path": path_column, "text": text, "label": label, "split": split}
    found = manifest_of(source, layout, root, columns, attribute or [], broken == "skip")
    for note in found.notes:
        print(note)
    from spurmix.data.pack.job import BrokenFiles

    try:
        if texts:
            from spurmix.data.pack.texts import pack_texts

            report = pack_texts(
                found, target, tokenizer, max_length=max_length, limit=limit, broken=broken, shard=part
            )  # fmt: skip
        else:
            from spurmix.data.pack.images import pack_images

            pixels = size if size is not None else 28 if layout is Layout.mnist else 224
            report = pack_images(
                found, target, size=pixels, fit=fit, workers=workers, limit=limit, broken=broken, shard=part
            )  # fmt: skip
    except BrokenFiles as error:
        raise ValueError(str(error).replace("broken='skip'", "--broken skip")) from None
    print(report)
    tell_merge(target, part)


def tell_merge(target: Path, shard: tuple[int, int]) -> None:
    """Say how the shards of `target` become one dataset."""
    if shard[1] > 1:
        print(f"when all {shard[1]} shards are packed: spurmix merge --target {target}")


def shard_of(text: str | None) -> tuple[int, int]:
    """The shard that an option names; default: that of this process."""
    from spurmix.data.pack.job import process_shard

    if text is None:
        return process_shard()
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        raise ValueError(f"--shard must be i/n, such as 0/4, got {text!r}") from None
    return number, count


def merge(
    target: Annotated[Path, typer.Option(help="Folder to make.")],
    parts: Annotated[
        list[Path] | None, typer.Argument(help="Packed datasets, in order; default: all shards of the target.")
    ] = None,
) -> None:
    """Put packed datasets, such as shards, behind one another."""
    from spurmix.data.pack.merge import merge as merge_datasets
    from spurmix.data.pack.merge import shards_of

    print(merge_datasets(parts or shards_of(target), target))


def verify(dataset: Dataset) -> None:
    """Compare every byte of a packed dataset with its checksums."""
    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.data.pack.job import counted

    opened = PackedDataset(dataset)
    damaged = opened.verify()
    for damage in damaged:
        print(damage)
    if damaged:
        raise ValueError(f"{dataset} is damaged in {counted(len(damaged), 'place')}; pack it again")
    print(f"{opened}: every byte is as it was written")


def every_policy() -> dict[str, MixPolicy]:
    """The policies that need nothing but the groups."""
    takes = ("erm", "class_balanced", "group_balanced", "mixup", "lisa", "selecmix", "mixpro", "balance_attributes")
    return {name: getattr(policies, name)() for name in takes}


def residuals(groups: GroupIndex) -> tuple[float, dict[str, float | str]]:
    """Correlation of class and attribute in the data, and what each policy leaves of it, or why it does not fit."""
    raw, left = 0.0, dict[str, float | str]()
    for name, policy in every_policy().items():
        try:
            audit = policy.audit(groups)
            raw, left[name] = audit.raw, audit.residual
        except ValueError as error:
            left[name] = str(error)
    return raw, left


def inspect(
    dataset: Dataset,
    attribute: Annotated[str | None, typer.Option(help="Attribute of the groups; default: the first.")] = None,
    split: Annotated[str | None, typer.Option(help="Split; default: the first.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of each group's first images, a PNG.")
    ] = None,
) -> None:
    """Show a packed dataset: sizes, groups, how class and attribute correlate, and what each policy would leave of it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from spurmix.data.dataset.packed import PackedDataset

    opened = PackedDataset(dataset)
    console = Console()
    size = sum(f.stat().st_size for f in opened.path.iterdir() if f.is_file())
    console.print(escape(f"{opened}, {size / 2**20:,.1f} MiB"), soft_wrap=True)
    console.print(escape("splits: " + ", ".join(f"{name} {count:,}" for name, count in opened.splits.items())))
    chosen = split if split is not None else next(iter(opened.splits))
    part = opened.split(chosen)
    groups = part.groups(attribute)
    table = Table(
        "group", "label", "attribute", "count", "share", title=escape(f"groups of {chosen}"), title_justify="left"
    )
    for row in groups.table():
        share = f"{100 * row['share']:.2f}%"
        names = (escape(str(row[name])) for name in ("group", "label", "attribute"))
        table.add_row(*names, f"{row['count']:,}", share)
    console.print(table)
    raw, left = residuals(groups)
    table = Table("policy", "correlation left", title=f"correlation in the data: {raw:.3f}", title_justify="left")
    for name, value in left.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else escape(value))
    console.print(table)
    if sheet is not None:
        contact_sheet(part, groups, sheet)
        console.print(escape(f"{sheet}: the first images of each group"), soft_wrap=True)


def contact_sheet(part: Any, groups: GroupIndex, path: Path, columns: int = 8, side: int = 96) -> None:
    """A PNG with a row of images for each group, its name above them."""
    from spurmix.data.pack.decode import import_pillow

    if part.kind != "images":
        raise ValueError(f"--sheet is for images; this dataset holds {part.kind}")
    if path.is_dir() or not path.name:
        raise ValueError(f"--sheet: {path} is a folder; name the PNG file to write")
    library, _ = import_pillow()
    from PIL import ImageDraw

    head = 18
    canvas = library.new("RGB", (columns * side, groups.num_groups * (side + head)), "white")
    pen = ImageDraw.Draw(canvas)
    ids, array = groups.group_ids(), part.array
    for g in range(groups.num_groups):
        top = g * (side + head)
        pen.text((4, top + 3), f"{groups.group_name(g)}: {int(groups.sizes[g]):,}", fill="black")
        for k, row in enumerate((ids == g).nonzero()[0][:columns]):
            canvas.paste(library.fromarray(array[row]).resize((side, side)), (k * side, top + head))
    temporary = path.with_name(f".{path.name}.part")
    try:
        canvas.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"--sheet: cannot write {path} ({error.strerror or error})") from None


def audit(
    dataset: Dataset,
    policy: Annotated[str, typer.Option(help="Policy to look at.")] = "balance_attributes",
    attribute: Annotated[str | None, typer.Option(help="Attribute of the groups; default: the first.")] = None,
    split: Annotated[str, typer.Option(help="Split that is trained on.")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how much of the correlation between class and attribute a policy leaves, before any training."""
    from spurmix.data.dataset.packed import PackedDataset

    known = every_policy()
    if policy not in known:
        raise ValueError(f"--policy must be one of {', '.join(known)}, got {policy!r}")
    found = known[policy].audit(PackedDataset(dataset).split(split).groups(attribute))
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    from spurmix.cli.features import features

    for command in (pack, features, merge, verify, inspect, audit):
        app.command()(command)

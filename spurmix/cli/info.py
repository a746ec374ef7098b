"""`spurmix info`: shows versions, compiled modules and the backend of each operator."""

from __future__ import annotations

from spurmix.cli.versions import versions


def gpu_description() -> str:
    """Return the name, compute capability and free memory of the current GPU, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none (this torch is built without CUDA)"
    free, total = torch.cuda.mem_get_info()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    name, gib = torch.cuda.get_device_name(), 2**30
    return f"{name}, compute capability {capability}, {free / gib:.1f} of {total / gib:.1f} GiB free"


def info() -> None:
    """Show versions, the state of the compiled modules, and the backend of each operator."""
    from rich.console import Console
    from rich.table import Table

    from spurmix import _build_stamp

    table = Table("component", "state")
    for name, state in _build_stamp.status().items():
        table.add_row(f"module {name}", state)
    try:
        import torch

        from spurmix.ops import backends, schema

        names = sorted({s.split("(", 1)[0] for s in schema.SCHEMAS if "_out(" not in s and "_backward(" not in s})
        for name in names:
            table.add_row(f"op {name}", f"CPU: {backends.serving()}, GPU: {backends.serving('cuda')}")
        table.add_row("GPU", gpu_description())
        if backends.serving() == "cpu":
            from spurmix import _C

            table.add_row("instruction set", _C.isa())
        table.add_row("threads", str(torch.get_num_threads()))
    except ModuleNotFoundError as error:
        install = "pip install 'spurmix\\[train]'"  # the bracket is escaped for rich
        table.add_row("operators", f"not available: they need the package {error.name!r}; {install}")
    for name, version in versions().items():
        table.add_row(name, version)
    Console().print(table)

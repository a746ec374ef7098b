"""Errors of commands: each ends as one message and an exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from spurmix.cli.terminal import format_warnings, show
from spurmix.core.launcher import end_with_launcher
from spurmix.core.names import printable

EXPECTED = (ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError)
"""Errors whose message is enough for a user. Any other error is a bug, so its traceback is shown."""

WAIT = 10.0
"""Seconds that a failed process waits for the first process on its machine to fail as well."""


class CommandError(Exception):
    """An error that is reported by its message only.

    Args:
        message: What to report.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_command(app: Callable[..., object]) -> int:
    """Run the command line and report an error as one message.

    Under torchrun the error is recorded for torchrun's report. Otherwise it is printed.

    Args:
        app: The typer application.

    Returns:
        The exit code.
    """
    format_warnings()
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        return _run_under_torchrun(app)
    try:
        return _run(app)
    except CommandError as error:
        rank = os.environ.get("RANK", "0")
        process = "" if rank == "0" else f" (process {rank})"
        show(f"spurmix{process}: {error}", lines=True, error=True)
        return error.exit_code


def _run_under_torchrun(app: Callable[..., object]) -> int:
    """Run the command line in one of several processes.

    All processes usually fail with the same error. torchrun reports every recorded error, so only the first process on a
    machine records it immediately. torchrun then stops the others while they wait.
    """
    end_with_launcher()  # before torch is imported, which takes seconds
    from torch.distributed.elastic.multiprocessing.errors import record

    is_first = os.environ.get("LOCAL_RANK") == "0"

    @record
    def run() -> int:
        try:
            return _run(app, standalone_mode=False)
        except CommandError:
            if not is_first:
                time.sleep(WAIT)
            sys.tracebacklimit = 0  # `record` saves the formatted traceback, which is then the message only
            raise

    try:
        return run() or 0
    except CommandError as error:
        if not is_first:
            # When this process exits, others may fail because they lose the connection. torchrun takes the earliest error,
            # in whole seconds, as the root cause.
            time.sleep(1)
        return error.exit_code


def _run(app: Callable[..., object], standalone_mode: bool = True) -> int:
    """Run the command line. Expected errors become a `CommandError`."""
    try:
        code = app(standalone_mode=standalone_mode)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # every error becomes one message
        if hasattr(error, "format_message"):  # a usage error of click. In standalone mode, click prints it and exits.
            raise CommandError(printable(error.format_message(), keep="\n"), 2) from None
        if _is_interrupt(error):
            return 130
        if os.environ.get("SPURMIX_TRACEBACK") or not isinstance(error, EXPECTED):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            error = ImportError("this command needs the package 'torch': pip install 'spurmix[train]'")
        # Messages of spurmix have one line, so a line break in them is part of a name. Those of PyTorch may have several.
        message = printable(error, keep="\n" if isinstance(error, (RuntimeError, ImportError)) else "")
        raise CommandError(message, 2 if isinstance(error, (ValueError, TypeError)) else 1) from None


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error."""
    # Ctrl-C during an import can surface as another error, so its causes are searched.
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None

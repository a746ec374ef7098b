"""Python processes for tests that start in milliseconds, because they fork from a process that has imported torch.

A new interpreter needs three seconds to import torch. A process of this module runs the script of a test as the main
program, receives signals and finalizes its interpreter like any other. Environment variables that are read when a
library is loaded, for example OMP_NUM_THREADS, have no effect: such tests start an interpreter with `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIMIT = 1 << 20
LIBRARY = (
    "spurmix.ops.functional", "spurmix.data.loader.mix_loader", "spurmix.data.pack.images", "spurmix.data.pack.texts",
)  # fmt: skip
TRAINING = (
    *LIBRARY, "spurmix.train.runs.run", "spurmix.cli.app", "spurmix.cli.report.run", "accelerate", "matplotlib.pyplot",
    "transformers.models.resnet.modeling_resnet",
)  # fmt: skip


class ForkedProcess:
    """A running script, with the methods of `subprocess.Popen` that the tests use. Its output is text."""

    def __init__(self, server: Server, pid: int, stdout: int, stderr: int) -> None:
        self.pid, self._server, self.returncode = pid, server, None
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)
        self.returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._server.request({"poll": self.pid})
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"the process did not end in {timeout} seconds")
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(file.read) for file in (self.stdout, self.stderr)]
            self.wait(timeout)
        return texts[0].result(), texts[1].result()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """A process that has imported the given modules."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, str(Path(__file__)), str(other.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=[other.fileno()], start_new_session=True)
        atexit.register(self._socket.close)  # ends the server

    def request(self, message: dict[str, Any], files: tuple[int, ...] = ()) -> Any:
        socket.send_fds(self._socket, [json.dumps(message).encode()], files)
        answer = self._socket.recv(LIMIT)
        assert answer, "the server has ended"
        return json.loads(answer)


@functools.cache
def server(modules: tuple[str, ...]) -> Server:
    return Server(modules)


def start(
    script: str, *arguments: object, env: Mapping[str, str] | None = None, modules: tuple[str, ...] = LIBRARY
) -> ForkedProcess:
    """Run a script with these arguments in `sys.argv[1:]`.

    `env` are changes of the environment. `modules` are imported once, by the process that forks.
    """
    message = {
        "script": script,
        "arguments": [str(a) for a in arguments],
        "folder": os.getcwd(),
        "env": {**os.environ, **(env or {})},
    }
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    try:
        pid = server(modules).request(message, (out_end, err_end))
    finally:
        os.close(out_end)
        os.close(err_end)
    return ForkedProcess(server(modules), pid, out, err)


def run(
    script: str, *arguments: object, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    process = start(script, *arguments, env=env)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(["-c", *map(str, arguments)], process.wait(), out, err)


def start_ranks(world: int, script: str, *arguments: object, modules: tuple[str, ...] = LIBRARY) -> list[ForkedProcess]:
    """Start a process for each rank, with the environment variables of torchrun."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [{**shared, "RANK": str(k), "LOCAL_RANK": str(k)} if world > 1 else {} for k in range(world)]
    return [start(script, *arguments, env=rank, modules=modules) for rank in ranks]


def run_ranks(
    world: int, script: str, *arguments: object, modules: tuple[str, ...] = LIBRARY
) -> list[subprocess.CompletedProcess[str]]:
    processes = start_ranks(world, script, *arguments, modules=modules)
    outputs = [p.communicate(300) for p in processes]
    return [subprocess.CompletedProcess(["-c"], p.wait(), *o) for p, o in zip(processes, outputs, strict=True)]


MODULE = "import runpy, sys; name = sys.argv.pop(1); runpy.run_module(name, run_name='__main__', alter_sys=True)"
"""`start(MODULE, name, *arguments)` is `python -m name ARGUMENTS`."""


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Answer requests. Return a request only in the forked process that must run it."""
    while True:
        data, files, _, _ = socket.recv_fds(connection, LIMIT, 2)
        if not data:
            os._exit(0)
        message = json.loads(data)
        if "poll" in message:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            connection.send(json.dumps(status if pid else None).encode())
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.dup2(files[0], 1)
            os.dup2(files[1], 2)
        for number in files:
            os.close(number)
        if pid == 0:
            return message  # type: ignore[no-any-return]
        connection.send(json.dumps(pid).encode())


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.argv = ["-c", *request["arguments"]]
    sys.path[0] = ""  # as with python -c
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(request["script"], "<string>", "exec"), namespace)

"""The prefetch thread and the process: exit, Ctrl-C and fork."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import forked_python
import pytest
from forked_python import ForkedProcess

PRELUDE = """
import gc, os, sys, threading, time, warnings
import numpy as np, torch
from spurmix import GroupIndex, MixLoader, policies
from spurmix.data.loader.strategy import BatchStrategy
warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork in a process with threads
rng = np.random.default_rng(0)
groups = GroupIndex(rng.integers(0, 2, 64))
images = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
def loader(batch=64, **options):
    return MixLoader(images, groups, policies.mixup(), batch, **dict(steps=10**6) | options)
def slow(seconds, at=0):
    real = BatchStrategy.batch_maker
    def new_maker(self, sequence):
        make_batch = real(self, sequence)
        def delayed(step, buffers):
            if step >= at:
                time.sleep(seconds)
            return make_batch(step, buffers)
        return delayed
    BatchStrategy.batch_maker = new_maker
"""


def start(script: str) -> ForkedProcess:
    return forked_python.start(PRELUDE + textwrap.dedent(script))


def finish(process: ForkedProcess) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.wait(), out, err


CYCLE = "gc.disable(); cycle = [batches]; cycle.append(cycle)"


@pytest.mark.parametrize(("prefetch", "end"), [(2, "pass"), (2, "sys.exit(0)"), (2, CYCLE), (0, CYCLE)])
def test_the_interpreter_exits_with_an_active_iterator(prefetch: int, end: str) -> None:
    script = f"""
    kept = loader(prefetch={prefetch})
    batches = iter(kept)
    for _ in range(3): next(batches)
    print("done", flush=True)
    {end}
    """
    assert finish(start(script)) == (0, "done\n", "")


def test_exit_waits_for_the_thread() -> None:
    # Otherwise the thread would return into an interpreter that has been finalized.
    script = """
    import atexit
    slow(0.3, at=2)
    batches = iter(loader())
    next(batches)
    atexit._run_exitfuncs()
    print([t.name for t in threading.enumerate()])
    """
    assert finish(start(script)) == (0, "['MainThread']\n", "")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_ctrl_c_while_waiting_for_a_batch(prefetch: int) -> None:
    script = f"""
    slow(1.0, at=2)
    batches = loader(prefetch={prefetch})
    try:
        for batch in batches:
            if batches.step == 2:
                print("waiting", flush=True)
    except KeyboardInterrupt:
        del batch
        print("interrupted at", batches.step, len([t for t in threading.enumerate() if "spurmix" in t.name]))
    next(iter(batches))
    print("continued to", batches.step)
    """
    process = start(script)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (0, "interrupted at 2 0\ncontinued to 3\n", "")


def test_uncaught_ctrl_c_ends_the_process() -> None:
    process = start(
        """
        slow(0.5, at=2)
        for k, batch in enumerate(loader()):
            if k == 1: print("waiting", flush=True)
        """
    )
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
@pytest.mark.parametrize("exits", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_process_must_iterate_again(exits: str) -> None:
    script = f"""
    slow(0.01)  # the fork happens while a batch is being made
    for prefetch in (0, 2):
        kept = loader(batch=8, prefetch=prefetch, steps=12)
        batches = iter(kept)
        first = next(batches).clone()
        for round in range(2):
            child = os.fork()
            if child == 0:
                try:
                    next(batches)
                except RuntimeError as error:
                    assert "before a fork" in str(error)
                else:
                    os._exit(2)
                del batches
                gc.collect()
                kept.set_step(0)
                assert torch.equal(next(iter(kept)).input, first.input)
                assert sum(1 for _ in kept) == 11
                {exits}
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            next(batches)
        assert sum(1 for _ in batches) == 9
    print("done")
    """
    assert finish(start(script)) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_a_forked_process_that_exits_does_not_stop_the_thread_of_its_parent() -> None:
    script = """
    kept = loader(steps=50)
    batches = iter(kept)
    next(batches)
    for _ in range(2):
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        next(batches)
    assert len(list(batches)) == 47
    print("done")
    """
    assert finish(start(script)) == (0, "done\n", "")


def test_the_thread_respects_a_limit_of_openmp_threads() -> None:
    pytest.importorskip("threadpoolctl")
    script = """
    import threadpoolctl
    torch.get_num_threads()
    seen = []
    real = BatchStrategy.batch_maker
    BatchStrategy.batch_maker = lambda self, sequence: (seen.append(0), lambda step, b, f=real(self, sequence): (seen.append(torch.get_num_threads()), f(step, b))[1])[1]
    for threads in (3, 1):
        with threadpoolctl.threadpool_limits(threads, user_api="openmp"):
            assert torch.get_num_threads() == threads
            seen.clear()
            list(loader(steps=2))
            print(seen)
    """
    assert finish(start(script)) == (0, "[0, 3, 3]\n[0, 1, 1]\n", "")

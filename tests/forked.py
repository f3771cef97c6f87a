"""Several processes in a moment: forked from one that has loaded torch, and told what torchrun tells.

    python forked.py MODULE:FUNCTION JOBS

JOBS is a JSON list of [n, [argument, ...]]; each is n processes that call the function, one job after the other. What
is printed is a JSON list: of each job the exit codes by rank, and what they wrote to stderr.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import torch._dynamo  # noqa: F401 - which DistributedDataParallel loads: here, so that no process loads it again

TESTS = Path(__file__).parent


class Ended(NamedTuple):
    """Of a job: exit codes by rank; all that was written to stderr."""

    codes: list[int]
    stderr: str


def run(call: str, jobs: Sequence[tuple[int, Sequence[str]]], **environment: str) -> list[Ended]:
    """What became of each job."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, __file__, call, json.dumps(jobs)], capture_output=True, text=True,
                          timeout=600, env=os.environ | variables | environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Ended(*each) for each in json.loads(done.stdout.splitlines()[-1])]


def forked(function: Callable[..., object], n: int, arguments: Sequence[str]) -> Ended:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryFile() as said:
        children = []
        for rank in range(n):
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 2)
                os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
                os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n))
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                try:
                    function(*arguments)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = dict[int, int]()
        for _ in children:
            if any(codes.values()) and len(codes) == n - 1:  # the last one may hang
                os.kill(next(child for child in children if child not in codes), signal.SIGKILL)
            child, status = os.wait()
            codes[child] = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return Ended([codes[child] for child in children], said.read().decode(errors="replace"))


def main(call: str, jobs: str) -> None:
    module, _, name = call.partition(":")
    function = getattr(importlib.import_module(module), name)
    print(json.dumps([forked(function, n, arguments) for n, arguments in json.loads(jobs)]))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Several processes in a moment: forked from one that has loaded torch, and told what torchrun tells.

That one is started when it is first needed and ends with the tests. Each line that it reads is a JSON list, [MODULE:
FUNCTION, jobs, environment, folder]; a job is [n, [argument, ...]]: n processes that call the function, one job after
the other. It prints a line for each: the exit codes by rank, what was written to stdout, and what to stderr.
"""

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

TESTS = Path(__file__).parent
SECONDS = 1800  # after which a process is ended


class Ended(NamedTuple):
    """Of a job: exit codes by rank; all that was written to stdout and to stderr."""

    codes: list[int]
    stdout: str
    stderr: str


@cache
def server() -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    process = subprocess.Popen([sys.executable, __file__], env=environment, cwd=TESTS, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def run(call: str, jobs: Sequence[tuple[int, Sequence[str]]], **environment: str) -> list[Ended]:
    """What became of each job, in this process's folder and environment."""
    process = server()
    assert process.stdin
    assert process.stdout
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    print(json.dumps([call, jobs, variables, str(Path.cwd())]), file=process.stdin, flush=True)
    return [Ended(*json.loads(process.stdout.readline())) for _ in jobs]


def forked(function: Callable[..., object], n: int, arguments: Sequence[str]) -> Ended:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryFile() as out, TemporaryFile() as said:
        children = []
        for rank in range(n):
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(said.fileno(), 2)
                signal.alarm(SECONDS)
                if n > 1:
                    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
                    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n))
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os._exit(_code(function, arguments))
            children.append(child)
        codes = dict[int, int]()
        for _ in children:
            if any(codes.values()) and len(codes) == n - 1:  # the last one may hang
                os.kill(next(child for child in children if child not in codes), signal.SIGKILL)
            child, status = os.wait()
            codes[child] = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, said):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended([codes[child] for child in children], *texts)


def _code(function: Callable[..., object], arguments: Sequence[str]) -> int:
    """What a process that calls the function ends with."""
    try:
        function(*arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def command(*words: str) -> None:
    """`convnet WORDS`; the processes that torch's agent starts for it are forked as well."""
    from torch.distributed.launcher import api

    from convnet.cli import app

    launch = api.elastic_launch

    def forking(config: api.LaunchConfig, program: str) -> Any:
        assert program == sys.executable
        return launch(replace(config, start_method="fork"), python)

    api.elastic_launch = forking  # type: ignore[misc,assignment]
    sys.argv = ["convnet", *words]
    app.main()


def python(*words: str) -> None:
    assert words[:2] == ("-m", "convnet")
    command(*words[2:])


def main() -> None:
    import torch._dynamo  # noqa: F401 - which DistributedDataParallel loads: here, so that no process loads it again

    for line in sys.stdin:
        call, jobs, environment, folder = json.loads(line)
        module, _, name = call.partition(":")
        function = getattr(importlib.import_module(module), name)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for n, arguments in jobs:
            print(json.dumps(forked(function, n, arguments)), flush=True)


if __name__ == "__main__":
    main()

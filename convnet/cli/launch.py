"""One command, several processes: what torchrun does, for people who don't know it.

torch's own agent starts the processes, hands signals on to them, and starts all of them anew from the last saved step
when one is lost. An error that a run itself ends with is no loss: it is told once, and is the command's exit code.
"""

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from convnet.errors import ConvnetError, Diverged, Interrupted, Unreachable
from convnet.io.atomic import write_atomic
from convnet.io.processes import from_environment
from convnet.io.urls import Place, Url, without_secrets

if TYPE_CHECKING:
    from convnet.recipe import Recipe

RESTARTS = 10  # after which a run whose processes are lost again and again ends
ENDED, COMMAND = "CONVNET_ENDED", "CONVNET_COMMAND"  # the folder for exit codes; what the user typed


def launch(n: int, store: Place, recipe: "Recipe", options: Mapping[str, object]) -> int:
    """Trains in n processes that work together, each a `convnet train` with these options; returns the exit code.

    Store and recipe were chosen once, before there are several. Raises: UsageError where they can't share its net so.
    """
    from convnet.nets.describe import check_parallel
    from convnet.recipe import to_toml

    check_parallel(str(options["--parallel"]), recipe.net, recipe.net_options, n)
    with TemporaryDirectory(prefix="convnet-") as place:
        words = ["train", store.address if isinstance(store, Url) else str(store)]
        for name, value in options.items():
            words += [] if value is None or value is False else [name] if value is True else [name, str(value)]
        if not options["--resume"]:
            write_atomic(Path(place) / "recipe.toml", to_toml(recipe).encode())
            words += ["--recipe", str(Path(place) / "recipe.toml")]
        return start(n, words, "the run goes on from its last saved step with --resume")


def start(n: int, words: Sequence[str], advice: str) -> int:
    """Runs `convnet WORDS` in n processes that work together; returns the exit code. advice: when they are lost."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="convnet-") as place:
        ended = Path(place)
        os.environ |= {ENDED: str(ended), COMMAND: typed()}
        config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=n, run_id=uuid4().hex, rdzv_backend="c10d",
                              rdzv_endpoint="localhost:0", max_restarts=RESTARTS, monitor_interval=0.1)  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "convnet", *words)
        except SignalException:
            return Interrupted.exit_code
        except ChildFailedError as error:
            if any(ended.iterdir()):
                return _code(ended)
            rank, failure = error.get_first_failure()
            print(f"convnet: process {rank} of {n} was lost again and again (exit code {failure.exitcode}); {advice}",
                  file=sys.stderr)  # fmt: skip
            return 1
        return _code(ended)


def _code(ended: Path) -> int:
    """What the run ended with, by the first process that told."""
    told = sorted(ended.iterdir())
    return int(told[0].read_text(encoding="ascii")) if told else 0


def end(error: ConvnetError) -> tuple[bool, int]:
    """Whether this process tells of the error that it ends with, and its exit code.

    One of several is silent where another tells the same, and has no exit code for torch's agent to start it anew.
    """
    processes = from_environment()
    told = processes.is_first or not isinstance(error, Interrupted | Diverged)  # which come to all of them
    told = told and not hasattr(error, "__notes__")  # of an error in another one
    if ENDED not in os.environ or processes.n == 1:
        return told, error.exit_code
    if told:
        write_atomic(Path(os.environ[ENDED], str(processes.rank)), str(error.exit_code).encode())
    return told, error.exit_code if isinstance(error, Unreachable) else 0  # whom only the agent can end


def is_ended() -> bool:
    """Whether another of several processes has told why all end: what this one runs into is only that it's gone."""
    return ENDED in os.environ and from_environment().n > 1 and any(Path(os.environ[ENDED]).iterdir())


def restarted() -> bool:
    """Whether this process was started anew for one that was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_device(name: str) -> str:
    """The device that --device names, of several processes of a machine each with its own CUDA device."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda"):
        return name
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else name


def typed() -> str:
    """The command as its user typed it, without what is secret in a URL."""
    return os.environ.get(COMMAND, without_secrets(shlex.join(["convnet", *sys.argv[1:]])))

"""Processes that do one work together: which of them is this, what is its part, and what do all of them know?

torchrun starts them and tells each its rank; torch.distributed joins them, by gloo on the CPU and by NCCL on CUDA
devices. A process alone is the first of one, and everything here then costs nothing.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Literal, TypeVar

from convnet.errors import ConvnetError, Interrupted, Unreachable, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

TIMEOUT = "CONVNET_TIMEOUT"  # minutes for which a process waits for the others before the work ends
MINUTES = 10.0  # where it isn't set
ANSWER = 10.0  # seconds in which the others that wait in vain say so too
T = TypeVar("T")
Parallel = Literal["data", "columns", "fully-connected"]  # of what each process has a part: batches, and of the net


@dataclass(frozen=True)
class Processes:
    """How many processes work together, and which of them this is: 0 to n - 1. The first one writes.

    group: torch's, where they are some of all. mesh: where each holds one column of a net, who has which. split: each
    holds a part of the fully connected layers.
    """

    rank: int = 0
    n: int = 1
    group: "ProcessGroup | None" = None
    mesh: "DeviceMesh | None" = None
    split: bool = False

    def __deepcopy__(self, memo: object) -> "Processes":
        return self  # of a net that is copied

    def over_columns(self, n_columns: int, device: str) -> "Processes":
        """These, in groups that hold a column of a net each: process r has column r % n_columns."""
        from torch import arange, distributed
        from torch.distributed.device_mesh import DeviceMesh

        ranks = arange(self.n).view(-1, n_columns)
        with _stdout_to_stderr():
            both = (rows.tolist() for rows in (ranks.t(), ranks))
            own = [distributed.new_subgroups_by_enumeration(rows, timeout=timeout())[0] for rows in both]
        groups = [group for group in own if isinstance(group, distributed.ProcessGroup)]  # each process is in both
        names = ("data", "columns")
        return replace(self, mesh=DeviceMesh.from_group(groups, device, ranks, mesh_dim_names=names))

    @property
    def data(self) -> "Processes":
        """Those that share each batch with this one, and hold the same weights."""
        return self if self.mesh is None else self._along("data")

    @property
    def columns(self) -> "Processes":
        """Those that hold a column of a net each, with the same part of each batch."""
        return ALONE if self.mesh is None else self._along("columns")

    @property
    def holders(self) -> "Processes":
        """Those that hold a net together: its columns, or their parts of its fully connected layers."""
        return self if self.split else self.columns

    def _along(self, dimension: str) -> "Processes":
        assert self.mesh is not None
        one = self.mesh[dimension]
        return Processes(one.get_local_rank(), one.size(), one.get_group())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, size: int, chunk: int = 1) -> slice:
        """This process's part of `size` things in order: parts differ by one `chunk` at most, and may be empty."""
        n_chunks = -(-size // chunk)
        first, end = (chunk * (n_chunks * rank // self.n) for rank in (self.rank, self.rank + 1))
        return slice(min(first, size), min(end, size))

    def sum(self, values: "Tensor") -> "Tensor":
        """The sum over the processes, in place and the same in each; every one must call it."""
        if self.n > 1:
            from torch import distributed

            distributed.all_reduce(values, group=self.group)
        return values

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        """The tensors of all, which have one shape, by rank."""
        from torch import distributed, empty_like

        tensors = [empty_like(tensor) for _ in range(self.n)]
        distributed.all_gather(tensors, tensor, group=self.group)
        return tensors

    def swap(self, rows: "Tensor", counts: list[int], received: list[int] | None = None) -> "Tensor":
        """Sends each process its rows, counts[rank] of them one after the other; returns those that each has for this
        one, as many, or `received` of each."""
        from torch import distributed

        received = received or counts
        result = rows.new_empty(sum(received), *rows.shape[1:])
        distributed.all_to_all_single(result, rows, received, counts, group=self.group)
        return result

    def sizes(self, n: int) -> list[int]:
        """How many of n things each process has."""
        return [len(range(n)[replace(self, rank=rank).part(n)]) for rank in range(self.n)]

    def broadcast(self, tensor: "Tensor", rank: int) -> "Tensor":
        """The tensor of one of them, written into all others'."""
        from torch import distributed

        distributed.broadcast(tensor, group_src=rank, group=self.group)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.n == 1:
            return here
        from torch import tensor

        return bool(self.sum(tensor(float(here))).item())

    def wait(self) -> None:
        """Until every process is here."""
        self.together(lambda: None)

    def agreed(self, items: Iterable[T], stop: Callable[[], bool]) -> Iterator[T]:
        """The items, as long as every process has one, none has failed to make its own, and none is asked to stop after
        the first.

        Raises: in the process whose items fail what they raise, in the others Interrupted.
        """
        error, source, begun = None, iter(items), False
        while True:
            item: T | None = None
            try:
                item = next(source, None)
            except ConvnetError as raised:
                error = raised
            if self.any(error is not None or (begun and stop())):
                raise error or Interrupted("stopped")
            if item is None:
                return
            begun = True
            yield item

    def each(self, work: Callable[[], T]) -> T:
        """What `work` returns in this process. Raises: what it raises in one, in every process."""
        made = list[T]()
        self.together(lambda: made.append(work()))
        return made[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in each process, by rank. Raises: what it raises in one, in every process."""
        if self.n == 1:
            return [work()]
        from torch import distributed

        result: T | ConvnetError
        try:
            result = work()
        except ConvnetError as error:
            result = error
        results = [result] * self.n
        distributed.all_gather_object(results, result, group=self.group)
        values = list[T]()
        for rank, each in enumerate(results):
            if isinstance(each, ConvnetError):
                if rank != self.rank:
                    each.add_note(f"raised in process {rank}, which tells of it")
                raise each
            values.append(each)
        return values


ALONE = Processes()


def from_environment(environment: Mapping[str, str] = os.environ) -> Processes:
    """As torchrun tells it. Raises: UsageError for what can't be."""
    rank, n = (environment.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (rank.isdecimal() and n.isdecimal() and int(rank) < int(n)):
        raise UsageError(f"RANK={rank}, WORLD_SIZE={n}: torchrun sets both, and a rank is 0 to WORLD_SIZE - 1")
    return Processes(int(rank), int(n))


@contextmanager
def joined(backend: str = "gloo") -> Iterator[Processes]:
    """Within it the processes that torchrun started are joined; one that it didn't start is alone."""
    processes = from_environment()
    if processes.n == 1:
        yield processes
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    limit = timeout()
    store, rank, n = next(iter(rendezvous("env://", timeout=limit)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of torchrun, whose store may outlive the processes
    own = distributed.distributed_c10d.PrefixStore(f"attempt {attempt}", store)
    with _stdout_to_stderr():
        distributed.init_process_group(backend, timeout=limit, store=own, rank=rank, world_size=n)
    try:
        yield processes
    except RuntimeError as error:
        if "Timed out" not in str(error):  # gloo's word for it; a process that ended is another matter
            raise
        raise _unreachable(own, processes, limit) from error
    finally:
        distributed.destroy_process_group()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What a library prints goes to stderr meanwhile: torch 2.10's gloo prints lines of its own, beside the answers."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def timeout(environment: Mapping[str, str] = os.environ) -> timedelta:
    """For how long a process waits for the others. Raises: UsageError."""
    text = environment.get(TIMEOUT) or str(MINUTES)
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if 0 < minutes < math.inf:
        return timedelta(minutes=minutes)
    raise UsageError(f"{TIMEOUT}={text}: it must be a number of minutes above 0")


def _unreachable(store: "Store", processes: Processes, limit: timedelta) -> Unreachable:
    """The error that names who doesn't answer: each that waited in vain says so to the others, and the first tells."""
    keys = [f"waits {rank}" for rank in range(processes.n)]
    store.set(keys[processes.rank], "")
    end, waiting = monotonic() + ANSWER, [0]
    with suppress(RuntimeError):  # the first process, which holds the store, has told and ended
        while monotonic() < end and not store.check(keys):
            sleep(0.05)
        waiting = [rank for rank, key in enumerate(keys) if store.check([key])]
    silent = [str(rank) for rank in range(processes.n) if rank not in waiting]
    who = f"process{'es' if len(silent) > 1 else ''} {', '.join(silent)} of {processes.n}" if silent else "a process"
    minutes = limit.total_seconds() / 60
    error = Unreachable(
        f"{who} (the first is 0) didn't answer for {minutes:g} minutes ({TIMEOUT}): it hangs, is stopped, or its "
        "machine or the network is gone; the last saved step is whole, and --resume goes on from it"
    )
    if processes.rank != waiting[0]:
        error.add_note(f"process {waiting[0]} tells of it")
    return error

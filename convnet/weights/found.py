"""What does a file of weights offer? Named tensors whose shapes are known before their numbers are read."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """One tensor of a file.

    name    as the file has it
    shape   as the file has it
    dtype   as the file has it, as text: "float32"
    read    gives the numbers, in memory of their own
    source  the name as the file has it, where `name` is another by now; else ""
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]
    source: str = ""


@dataclass(frozen=True)
class Part:
    """Tensors that lie together in a file.

    entry    the names under which they lie: "state_dict"; "" for the file's top
    tensors  them
    beside   what else lies there and is no tensor: "epoch (int)"
    """

    entry: str
    tensors: list[Found]
    beside: tuple[str, ...] = ()

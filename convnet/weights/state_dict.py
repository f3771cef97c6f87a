"""A state dict in a file of weights: named tensors whose shapes are known before their numbers are read."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a file.

    name   its key; `source` is the key in the file where this one is another by now, else ""
    shape  as the file has it
    dtype  as the file has it, as text: "float32"
    read   gives the numbers, in memory of their own
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]
    source: str = ""


@dataclass(frozen=True)
class StateDict:
    """Tensors that lie together in a file.

    entry   the keys under which they lie: "state_dict"; "" for the file's top
    others  what else lies there and is no tensor: "epoch (int)"
    """

    entry: str
    tensors: list[FileTensor]
    others: tuple[str, ...] = ()

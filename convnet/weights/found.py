"""What does a file of weights offer? Named tensors whose shapes are known before their numbers are read."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """One tensor of a file.

    name   as the file has it
    shape  as the file has it
    dtype  as the file has it, as text: "float32"
    read   gives the numbers, in memory of their own
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

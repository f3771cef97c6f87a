"""What tests share that hold ours against packages of others; docs/peers.md has what they print.

pip install -e ".[peers]" && pytest -m peers -n 0 -rs -s
"""

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def package(name: str) -> Any:
    """A module of others; where it doesn't load the test is skipped, with the reason."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for CUDA beside torch for the CPU
        pytest.skip(f'{name}: {error}; docs/peers.md: pip install -e ".[peers]" in an environment of its own')


def alike(what: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray, share: float, p: float = 2) -> None:
    """The difference's p-norm over that of the expected: 2 where single places may differ, as other roundings choose
    other places of a maximum; inf is the largest difference over the largest value."""
    found, expected = (torch.as_tensor(each).detach().double().flatten() for each in (found, expected))
    scale = float(torch.linalg.vector_norm(expected, p))
    difference = float(torch.linalg.vector_norm(found - expected, p)) / scale
    print(f"{what}: {difference:.1e}")
    assert 0 < scale < math.inf
    assert difference <= share, what

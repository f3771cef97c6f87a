"""What tests of ONNX files share: a mark for want of its packages, nets that tell pictures apart, torch's part once."""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import to_dict
from convnet.export import onnx
from convnet.nets.layers import Net

ABSENT = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
NEEDS_ONNX = pytest.mark.skipif(bool(ABSENT), reason='needs pip install "convnet-classics[onnx]"')


def needs_onnx(test: Any) -> Any:
    return pytest.mark.peers(NEEDS_ONNX(test))


def livelier(net: Net, factor: float) -> Net:
    """With larger weights: some fresh nets give nearly the same logits for all pictures, which would test nothing."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net


def program_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's part of an export takes seconds; done once for a net, in tests of what comes before and after it."""
    program, made = onnx._program, dict[bytes, bytes]()

    def once(module: onnx.FromPixels, kept: Checkpoint, path: Path, floats: bool) -> bytes:
        tensors = [tensor.numpy() for tensor in kept.weights.values()]
        numbers = [b"" if each is None else each.tobytes() for each in (kept.preprocessing.mean, *tensors)]
        key = pickle.dumps((floats, str(kept.recipe), to_dict(kept.preprocessing), kept.classes, numbers))
        if key not in made:
            made[key] = program(module, kept, path, floats)
        return made[key]

    monkeypatch.setattr(onnx, "_program", once)

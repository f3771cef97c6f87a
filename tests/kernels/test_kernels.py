"""The kernels where there is no GPU: Triton interprets them, and compiles them for GPUs that aren't there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convnet.kernels.cuda import augment as augmentation
from convnet.kernels.cuda import dropout as dropout_cuda
from convnet.kernels.cuda import norm, norm_pool
from convnet.kernels.cuda import triton as cuda
from convnet.kernels.cuda import update as sgd
from convnet.kernels.plain import Block

TESTS = Path(__file__).parents[1]
KERNELS = [f"tests/kernels/test_kernels_{name}.py" for name in ("augmentation", "dropout", "norm", "norm_pool", "sgd")]
TRAINING = ["tests/training/test_delayed_steps.py", "tests/data/test_device_loader.py"]  # whole steps; batches
PYTEST = ("-m", "pytest", "-p", "xdist.plugin", "-n", "0", "-q", "-rs", "-p", "no:cacheprovider")
INTERPRET = {"TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever else is installed
needs_triton = pytest.mark.skipif(cuda.triton is None, reason="Triton is not installed (pip install triton)")


def run(*command: str, **environment: str) -> str:
    """What a fresh process prints, which must succeed."""
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_interpreted() -> None:
    """The operations' tests, and whole steps with dropout and the update, their rate and draws read from memory, in a
    process of their own, since Triton looks at the variable when it is loaded."""
    text = run(*PYTEST, *KERNELS, *TRAINING, **INTERPRET)
    assert "passed" in text
    assert not [line for line in text.splitlines() if line.startswith("SKIPPED") and "tests/kernels" in line], text


@needs_triton
@pytest.mark.large
@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_every_kernel_compiles(capability: str, tmp_path: Path) -> None:
    """At AlexNet's sizes, without shared memory: what neighbouring lanes hold they don't exchange."""
    text = run("-W", "error", "tests/kernel_compiler.py", capability, TRITON_CACHE_DIR=str(tmp_path))
    shared = [line.split() for line in text.splitlines()]
    expected = {"_norm_forward", "_norm_backward", "_norm_pool_forward", "_norm_pool_backward"}
    assert {name for name, _ in shared} == expected | {"_dropout", "_step", "_augment"}
    assert len(shared) == 20
    assert [name for name, size in shared[:8] if int(size)] == []


@pytest.mark.skipif(cuda.INTERPRETED, reason="here the CPU has kernels")
def test_on_the_cpu_the_plain_forms_serve() -> None:
    x = torch.zeros(1, 4, 5, 5)
    assert not norm.available(x)
    assert not norm_pool.available(x, Block(5, 2.0, 1e-4, 0.75, size=3, stride=2))
    assert not dropout_cuda.available(x)
    assert not sgd.available(x, x, x, None)
    assert not augmentation.available(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.device("cpu"))


@pytest.mark.skipif(cuda.triton is None, reason="Triton is not installed, so this is so anyway")
def test_without_triton_the_plain_forms_serve() -> None:
    """A process in which Triton can't be loaded loads the kernels all the same, and has none."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from convnet.kernels.cuda import augment as augmentation, triton as cuda, dropout as dropout_cuda
from convnet.kernels.cuda import norm, norm_pool, update as sgd
from convnet.kernels import conv1
assert cuda.triton is None
assert not cuda.runs_on(torch.device("cuda"))
"""
    run("-W", "error", "-c", code)

"""Several processes test nets as one does: what is printed, and the file of probabilities, to the last byte."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.nets import create_model
from convnet.recipe import load_recipe
from pictures import write_photos

N = 150  # pictures: three blocks, the last one ragged; of three processes each has one, of two one has two
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "convnet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nets, and a store of larger pictures than they take."""
    folder = tmp_path_factory.mktemp("shared")
    write_photos(folder / "in", {"train/a": 2, "train/b": 2, "test/a": N // 2, "test/b": N - N // 2})
    prepare(open_source(folder / "in"), folder / "store", size=28, shorter_side=36, encoding="jpeg")
    recipe = replace(load_recipe("lenet5_small"), net_options={"output": "linear"})
    done = preprocess.of_recipe(recipe, np.zeros((28, 28, 3), np.float32), np.zeros(3))
    for seed in (0, 1):
        (folder / str(seed)).mkdir()
        weights = create_model("lenet5", seed=seed, num_classes=2, output="linear").state_dict()
        checkpoint.save(folder / str(seed) / "best.ckpt", Checkpoint(recipe, done, ("a", "b"), weights))
    return folder


def evaluate(place: Path, *options: str, launcher: tuple[str, ...] = ("-m", "convnet"), code: int = 0) -> str:
    """What it prints; of an error what it says of it."""
    words = ["evaluate", "0", "1", "store", "--scales", "28,36", "--quiet", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *launcher, *words, *options], cwd=place, env=environment, timeout=600,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_several_processes_print_and_keep_what_one_does(place: Path) -> None:
    options = ("--views", "single,dense", "--table", "--posteriors")
    right = evaluate(place, *options, "one")
    assert f"n {N}" in right
    assert evaluate(place, *options, "two", "--processes", "2") == right
    assert evaluate(place, *options, "three", launcher=tuple(LAUNCHER)) == right
    for name in ("two", "three"):
        assert (place / name).read_bytes() == (place / "one").read_bytes()
    assert not list(place.glob("*.part"))
    assert evaluate(place, *options, "two", "--processes", "2") == right, "from the file"
    assert evaluate(place, *options[:-1], "--processes", "2") == right, "without a file"


def test_an_error_is_told_once_with_its_code(place: Path) -> None:
    text = evaluate(place, "--split", "nowhere", "--processes", "2", code=2)
    assert text.count("nowhere") == 1
    assert "Traceback" not in text

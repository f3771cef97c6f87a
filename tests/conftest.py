"""What several tests share: small stores, made once; as many threads as the environment says, which is one; no GPU.

Tests are about the CPU, whose runs are bitwise the same, on a machine with a GPU too; those marked cuda see the GPU."""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: small nets gain nothing by more
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # and crawl with threads that spin on busy cores

import numpy as np
import pytest
import torch
from PIL import Image

from convnet import checkpoint, device
from convnet.cli import app as cli
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.evaluation.metrics import Scores
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model
from convnet.recipe import load_recipe

CPU = device.choose("fp32", "cpu")
Run = Callable[..., tuple[int, str, str]]
THREADS = int(os.environ["OMP_NUM_THREADS"])
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
N_GPUS = torch.cuda.device_count()  # which loads the driver as well: it reads the variable once
MPS = torch.backends.mps.is_available
HAS_MPS = MPS()

torch.set_warn_always(True)  # else once a process, in whichever test comes first


LITTLE = (  # files that import torch and are about files, pages, shapes, names, messages, or learn long
    *("benchmark", "checkpoint", "describe", "digests", "doctor", "ensemble", "health", "hub", "init_from", "library"),
    *("loader", "nets", "nets_learn", "receptive_fields", "report", "report_browser", "reproduce", "run_repairs"),
    *("safetensors", "store", "threads", "train", "weights", "weights_caffe", "weights_own", "weights_trainings"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file whose numbers depend on torch's arithmetic is numerical: .ci/run tests it under other instruction sets
    too. A test of another file can be marked by itself."""
    for item in items:
        module = getattr(item, "module", None)
        if hasattr(module, "torch") and module.__name__.removeprefix("test_") not in LITTLE:
            item.add_marker(pytest.mark.numerical)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.set_num_threads(THREADS)  # whatever the test before has chosen
    show_gpus(item.get_closest_marker("cuda") is not None)


def show_gpus(shown: bool) -> None:
    """Whether this process and those that it starts find the machine's GPUs."""
    if N_GPUS:
        torch.cuda.is_available = lambda: shown
        torch.cuda.device_count = lambda: N_GPUS if shown else 0
    if HAS_MPS:
        torch.backends.mps.is_available = wraps(MPS)(lambda: shown)  # torch's compiler looks at what is wrapped
    if shown and VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = VISIBLE if shown and VISIBLE else ""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """scikit-learn's digits at 28 x 28: train 1,259, val 179, test 359."""
    return prepare(open_source("digits"), tmp_path_factory.mktemp("digits") / "store", size=28)


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A quarter of them: train 315, val 45, test 90."""
    source = open_source("digits")
    few = replace(source, entries=source.entries[::4])
    return prepare(few, tmp_path_factory.mktemp("few_digits") / "store", size=28)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Synthetic colour pictures at 32 x 32 in 3 classes: train 90, val 30, test 100; the class is the main colour."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, n in {"train": 30, "val": 10, "test": 34}.items():
        for label, name in enumerate(("blue", "green", "red")):
            place = folder / "source" / split / name
            place.mkdir(parents=True)
            for i in range(n if (split, label) != ("test", 2) else n - 2):
                pixels = generator.integers(0, 180, (36, 44, 3), np.uint8)
                pixels[..., 2 - label] += 50
                Image.fromarray(pixels).save(place / f"{i:03d}.png")
    return prepare(open_source(folder / "source"), folder / "store", size=32)


@pytest.fixture(scope="session")
def untrained(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LeNet-5 for the digits, with its initial weights."""
    recipe = load_recipe("lenet5_small")
    how = preprocess.of_recipe(recipe, digits.mean_picture, digits.statistics.mean_rgb, digits.shorter_side)
    path = tmp_path_factory.mktemp("untrained") / "net.ckpt"
    weights = dict(create_model("lenet5", seed=0, **recipe.net_options).state_dict())
    checkpoint.save(path, checkpoint.Checkpoint(recipe, how, digits.classes, weights))
    return path


@pytest.fixture(scope="session")
def pngs(digits: Store) -> list[bytes]:
    """Twenty of their test pictures, as files."""
    files = []
    for i in range(20):
        Image.fromarray(digits.split("test").picture(i)).save(out := io.BytesIO(), "png")
        files.append(out.getvalue())
    return files


@pytest.fixture(scope="session")
def server(untrained: Path) -> Any:
    """What `convnet serve` asks about that checkpoint."""
    from convnet.serve import server_of

    return server_of(untrained, None, None, CPU)


@pytest.fixture(scope="session")
def app(server: Any) -> Any:
    """The same as an ASGI application, with its guard."""
    from convnet.serve.guard import Guard
    from convnet.serve.routes import application

    return Guard(application(server))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """run("show", ...) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convnet", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def trained_net(net: Any, preprocessing: Preprocessing, classes: tuple[str, ...] = ()) -> TrainedNet:
    """A net in memory, on the CPU."""
    return TrainedNet(net, preprocessing, classes, CPU)


def scores_of(
    classes: tuple[str, ...], labels: np.ndarray, predicted: np.ndarray, ranks: np.ndarray, split: str = "test"
) -> Scores:
    """Scores of which only the most probable class and the place of the true one matter."""
    ones = np.ones(len(labels))
    return Scores(
        "single", split, classes, np.arange(len(labels)), labels, predicted[:, None], ones[:, None], ones, ranks
    )


def square(store: Store, split: str, i: int) -> np.ndarray:
    """The stored square by the plainest way: the shard's bytes, without the reader under test."""
    row = store.split(split).rows[i]
    data = Path(store.path / f"{split}-{row['shard']:05d}.tar").read_bytes()
    start = int(row["offset"]) + 512 + 128
    return np.frombuffer(data, np.uint8, store.size**2 * 3, start).reshape(store.size, store.size, 3)

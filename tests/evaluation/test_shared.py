"""Several processes test nets as one does: what is printed, and the file of probabilities, to the last byte."""

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
from forked import Ended, run
from pictures import write_photos

N = 150  # pictures: three blocks, the last one ragged; of three processes each has one, of two one has two


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


@pytest.fixture(autouse=True)
def beside_the_nets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def evaluate(*options: str, n: int = 1) -> Ended:
    """As one process, or as n that were told what torchrun tells."""
    words = ["evaluate", "0", "1", "store", "--scales", "28,36", "--quiet", "--device", "cpu"]
    return run("forked:command", [(n, [*words, *options])])[0]


def printed(*options: str, n: int = 1) -> str:
    ended = evaluate(*options, n=n)
    assert ended.codes == [0] * n, ended.stderr
    return ended.stdout


def test_several_processes_print_and_keep_what_one_does() -> None:
    options = ("--views", "single,dense", "--table", "--posteriors")
    right = printed(*options, "one")
    assert f"n {N}" in right
    assert printed(*options, "two", "--processes", "2") == right
    assert printed(*options, "three", n=3) == right
    for name in ("two", "three"):
        assert Path(name).read_bytes() == Path("one").read_bytes()
    assert not list(Path().glob("*.part"))
    assert printed(*options, "two", "--processes", "2") == right, "from the file"
    assert printed(*options[:-1], "--processes", "2") == right, "without a file"


def test_an_error_is_told_once_with_its_code() -> None:
    ended = evaluate("--split", "nowhere", "--processes", "2")
    assert ended.codes == [2]
    assert ended.stderr.count("nowhere") == 1
    assert "Traceback" not in ended.stderr

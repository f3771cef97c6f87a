"""A net tested on a store with some of its classes: labels by name, and outputs restricted to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.cli import app as cli
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.device import choose
from convnet.errors import UsageError
from convnet.evaluation.restrict import restricted
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model
from convnet.recipe import Recipe

NAMES = tuple(f"n{k:08d}" for k in (7, 3, 9, 1, 0, 8, 2, 4, 6, 5))  # not in the order of their names
SOME = (NAMES[2], NAMES[5], NAMES[8])


def trained(name: str = "cifar_18", **options: int | str) -> Checkpoint:
    """A net of NAMES whose answers differ from picture to picture."""
    net = create_model(name, num_classes=len(NAMES), seed=3, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for weights in net.parameters():
            weights.mul_(20 if weights.ndim > 1 else 1)
    done = Preprocessing(32, 0, 32, "rgb", np.full(3, 128, np.float32), 1.0, 0.0)
    recipe = Recipe(name=name, net=name, size=32, crop=32, net_options=options)
    return Checkpoint(recipe, done, NAMES, net.state_dict())


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("some")
    random = np.random.default_rng(0)
    for name in SOME:
        (folder / "in" / "val" / name).mkdir(parents=True)
        (folder / "in" / "train" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "in" / ("val" if i else "train") / name / f"{i}.png")
    return prepare(open_source(folder / "in"), folder / "store", size=32)


def logits(kept: Checkpoint, store: Store) -> tuple[np.ndarray, list[str]]:
    """Plain torch's logits (N, 10) of the store's val, and each picture's class by its folder."""
    split = store.split("val")
    pixels = np.stack([split.square(i) for i in range(split.n)])
    with torch.no_grad():
        found = checkpoint.rebuild(kept)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 128)
    return found.numpy(), [key.split("/")[1] for key in split.keys]


def test_labels_are_matched_by_name(some: Store) -> None:
    kept = trained()
    found, truth = logits(kept, some)
    labelled = some.with_labels_of(NAMES, "the net")
    split = labelled.split("val")
    assert [NAMES[k] for k in split.labels] == truth
    assert [some.classes[k] for k in some.split("val").labels] == truth  # the store itself is as it was
    assert some.with_labels_of(some.classes, "x") is some
    scores = TrainedNet.of(kept, choose("fp32", "cpu")).evaluate(split)
    wrong = np.mean([NAMES[k] != name for k, name in zip(found.argmax(1), truth, strict=True)])
    assert 0 < wrong < 1
    assert scores.top1 == wrong
    assert scores.classes == NAMES


def test_restricted_outputs_are_those_of_the_stores_classes(some: Store) -> None:
    kept = trained()
    found, truth = logits(kept, some)
    columns = found[:, [NAMES.index(name) for name in some.classes]]
    part = restricted(kept, some.classes)
    scores = TrainedNet.of(part, choose("fp32", "cpu")).evaluate(some.split("val"))
    assert [some.classes[k] for k in scores.predicted] == [some.classes[k] for k in columns.argmax(1)]
    assert scores.top1 == np.mean([some.classes[k] != name for k, name in zip(columns.argmax(1), truth, strict=True)])


@pytest.mark.parametrize("name", ["googlenet", "nin_cifar10", "vgg_a"])
def test_every_tensor_with_a_row_for_each_class_keeps_the_rows(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name, num_classes=len(NAMES), seed=0)
    rows = torch.arange(10.0)
    weights = {
        key: rows.reshape(-1, *[1] * (each.ndim - 1)).expand(10, *each.shape[1:]) if len(each) == 10 else each
        for key, each in net.state_dict().items()
    }
    done = Preprocessing(256, 0, 224, "rgb", None, 1.0, 0.0)
    kept = Checkpoint(Recipe(name=name, net=name), done, NAMES, weights)
    part = restricted(kept, SOME)
    with torch.device("meta"):
        small = create_model(name, num_classes=3, seed=0).state_dict()
    assert {key: each.shape for key, each in part.weights.items()} == {key: each.shape for key, each in small.items()}
    changed = [each for key, each in part.weights.items() if each.shape != weights[key].shape]
    assert len(changed) == (6 if name == "googlenet" else 2)
    assert all(each.flatten(1)[:, 0].tolist() == [2, 5, 8] for each in changed if each.ndim > 1)


def test_the_command_says_which_outputs_count(
    some: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "a.ckpt", trained())
    other = trained()
    checkpoint.save(tmp_path / "b.ckpt", Checkpoint(other.recipe, other.preprocessing, NAMES[::-1], other.weights))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["convnet", "evaluate", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    code, out, err = run(tmp_path / "a.ckpt", some.path, "--json")
    assert code == 0, err
    assert (
        f"{some.path} has 3 of the net's 10 classes: labels are matched by name, errors are over all 10 outputs" in err
    )
    assert len(json.loads(out)["per_class"]) == 10
    code, out, err = run(tmp_path / "a.ckpt", some.path, "--json", "--restrict")
    assert code == 0, err
    assert f"only the outputs of {some.path}'s 3 of the net's 10 classes count (--restrict)" in err
    assert [row["class"] for row in json.loads(out)["per_class"]] == list(some.classes)
    code, _, err = run(tmp_path / "a.ckpt", tmp_path / "b.ckpt", some.path)
    assert (code, "have other classes, or their order; an ensemble needs one list" in err) == (2, True)
    code, _, err = run(tmp_path / "a.ckpt", tmp_path / "b.ckpt", some.path, "--restrict")
    assert code == 0, err
    checkpoint.save(
        tmp_path / "c.ckpt", Checkpoint(other.recipe, other.preprocessing, tuple("0123456789"), other.weights)
    )
    for more in ((), ("--restrict",)):
        code, _, err = run(tmp_path / "c.ckpt", some.path, *more)
        assert code == 2
        assert NAMES[8] in err or NAMES[2] in err


def test_a_class_that_the_net_lacks_is_named(some: Store) -> None:
    with pytest.raises(
        UsageError, match=rf"1 classes that a.ckpt lacks, as '{SOME[1]}'; the net's are .*: name them alike"
    ):
        some.with_labels_of([name for name in NAMES if name != SOME[1]], "a.ckpt")

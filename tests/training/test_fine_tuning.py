"""A trained net learns other classes: which recipe it gets, what it begins with, and that resuming changes nothing."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Run
from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.cli.resolve import start_at
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import Interrupted, UsageError
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.recipe import Recipe
from convnet.training.fine_tuning import fine_tuning
from convnet.training.train import train
from convnet.weights import import_weights
from runs import Notes
from thin import THIN, thinned

MEAN = np.asarray([120.0, 110.0, 100.0], np.float32)


@pytest.fixture(scope="module", autouse=True)
def thin() -> Iterator[None]:
    """Which weights a run begins with, and where it goes on, doesn't depend on their number."""
    with thinned(THIN):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of 7 other classes, crops of 24 in 32, a mean colour."""
    path = tmp_path_factory.mktemp("trained") / "other.ckpt"
    net = create_model("cifar_relu", num_classes=7, seed=3)
    recipe = Recipe(name="other", net="cifar_relu", size=32, crop=32, mean="rgb", scale=0.02)
    done = Preprocessing(32, 0, 32, "rgb", MEAN, 0.02, 0.0)
    checkpoint.save(path, Checkpoint(recipe, done, tuple("abcdefg"), net.state_dict()))
    return path


def test_the_recipe_is_the_checkpoints_pictures_and_small_rates_for_what_is_trained(trained: Path) -> None:
    recipe = fine_tuning(trained, ("x", "y", "z"), 400)
    assert (recipe.name, recipe.net, recipe.init, recipe.mean) == ("fine_tuning", "cifar_relu", "paper", "start")
    assert (recipe.size, recipe.crop, recipe.scale) == (32, 32, 0.02)
    last = list(create_model("cifar_relu").state_dict())[-1].rpartition(".")[0]
    assert recipe.layer_lr == {"*": 0.1, last: 1.0}
    assert [fine_tuning(trained, ("x",), n).epochs for n in (1, 2000, 4000, 10**6)] == [30, 30, 15, 3]
    assert fine_tuning(trained, tuple("abcdefg"), 400).layer_lr == {"*": 0.1}  # nothing is new
    assert fine_tuning(trained, ("x",), 400, size=40).size == 40  # of a store that is there
    assert fine_tuning(trained, ("x",), 400, size=20).size == 32  # too small for the crop


def test_it_begins_with_the_weights_and_the_mean_and_goes_on_as_if_undisturbed(
    trained: Path, photos: Store, tmp_path: Path
) -> None:
    recipe = replace(fine_tuning(trained, photos.classes, 90), epochs=2, keep_epochs=(1,), lr=1e-3)
    train(recipe, photos, tmp_path / "run", init_from=trained)
    with pytest.raises(Interrupted):
        train(recipe, photos, tmp_path / "cut", init_from=trained, progress=Notes(stop := Stop(), 4), stop=stop)
    train(recipe, photos, tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "last.ckpt").read_bytes() for name in ("run", "cut"))
    assert whole == cut
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert np.array_equal(kept.preprocessing.mean, MEAN)
    before = checkpoint.load(trained).weights
    gaps = {name: float((kept.weights[name] - before[name]).norm() / before[name].norm()) for name in before
            if kept.weights[name].shape == before[name].shape and before[name].norm()}  # fmt: skip
    assert 0 < max(gaps.values()) < 0.2  # they have moved, a little
    with pytest.raises(UsageError, match='mean = "start": needs a net to begin with'):
        train(recipe, photos, tmp_path / "alone")


def test_initial_values_of_a_partial_import_are_not_taken_for_trained_ones(tmp_path: Path) -> None:
    net = create_model("cifar_relu", num_classes=7, seed=3)
    names = list(net.state_dict())
    file = tmp_path / "part.npz"
    arrays = {name: weight.numpy() for name, weight in net.state_dict().items() if name in names[:4]}
    np.savez(file, **arrays)
    path, report = import_weights(str(file), "cifar_relu", tmp_path / "part.ckpt", partial=True)
    assert sorted(report.missing) == sorted(names[4:])
    recipe = fine_tuning(path, tuple(f"class {k}" for k in range(10)), 400)
    new = {name.rpartition(".")[0] for name in names[4:]}
    assert recipe.layer_lr == {"*": 0.1, **dict.fromkeys(new, 1.0)}


def test_a_known_name_that_is_not_here_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"vgg16\.torchvision is not here yet: convnet import vgg16\.torchvision"):
        start_at(Path("vgg16.torchvision"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vgg16.torchvision.ckpt").touch()
    assert start_at(Path("vgg16.torchvision")) == Path("weights/vgg16.torchvision.ckpt")
    assert start_at(Path("nowhere")) == Path("nowhere")
    assert start_at(None) is None


def test_the_command_finds_recipe_and_net_by_itself(
    run: Run, trained: Path, photos: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("train", photos.path, "--start-from", trained, "--epochs", "1", "--out", "run")
    assert code == 0, err
    assert "recipe fine_tuning for cifar_relu and 90 training pictures" in err
    assert "missing, as other.ckpt has other classes: " in err
    assert out.startswith("trained cifar_relu for 1 epochs")
    assert torch.isfinite(checkpoint.load(tmp_path / "run" / "last.ckpt").weights["conv1.weight"]).all()
    # torch's agent starts it anew after a process was lost: the same command then goes on
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, out, err = run("train", photos.path, "--start-from", trained, "--epochs", "1", "--out", "run")
    assert code == 0, err
    assert "going on from" in err
    shutil.rmtree(tmp_path / "run")
    assert os.listdir(tmp_path) == []

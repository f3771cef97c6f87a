"""Several runs by one command: an ensemble's members, nets that begin with the one before; killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Run
from convnet import checkpoint
from convnet.data.store import Store
from convnet.errors import DataError, UsageError
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.training import series
from convnet.training.train import train
from thin import thinned

FEW = with_settings(load_recipe("lenet5_small"), ["epochs=1", "batch=64"])


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0..2", [0, 1, 2]), ("7, 0..1,5", [7, 0, 1, 5])])
def test_seeds(text: str, seeds: list[int]) -> None:
    stages = series.of_seeds(FEW, text, None)
    assert [stage.recipe.seed for stage in stages] == seeds
    assert [stage.name for stage in stages] == [f"seed-{seed}" for seed in seeds]


@pytest.mark.parametrize("text", ["", "a", "1..0", "1,1", "0..1000", "-1", "1...2"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        series.of_seeds(FEW, text, None)


def test_a_chain_begins_each_net_with_the_one_before(tmp_path: Path) -> None:
    names = series.chain("vgg-chain")
    stages = series.of_chain([series.recipe_called(name) for name in names], None)
    assert [(stage.name, stage.recipe.net, stage.start) for stage in stages] == [
        ("vgg_a", "vgg_a", None), ("vgg_d", "vgg_d", "vgg_a"), ("vgg_e", "vgg_e", "vgg_d"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="vgg_a stands there twice"):
        series.of_chain([stages[0].recipe] * 2, None)
    series.write(tmp_path / "chain", stages, "stores/x")
    assert series.read(tmp_path / "chain") == (stages, "stores/x")


def test_a_series_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    series.write(tmp_path / "out", series.of_seeds(FEW, "0..1", None), "stores/x")
    path = tmp_path / "out" / "series.json"
    whole = path.read_bytes()
    for wrong in (
        whole[:-20],
        whole.replace(b'"seed-1"', b'"../../x"'),
        b"[]",
        whole.replace(b'"seed": 1', b'"seed": 2'),
    ):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"series\.json is damaged"):
            series.read(tmp_path / "out")
    with pytest.raises(UsageError, match="is not empty"):
        series.write(tmp_path / "out", [], "stores/x")


def test_an_ensemble_is_trained_tested_and_gone_on_with(run: Run, few_digits: Store, tmp_path: Path) -> None:
    """Killed in the middle (-9), the command that goes on ends like undisturbed runs, and each member is tested."""
    words = [
        "train",
        str(few_digits.path),
        "--seeds",
        "0..1",
        "--set",
        "batch=64",
        "--epochs",
        "3",
        "--out",
        "ens",
        "-q",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "convnet", *words], stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        metrics = tmp_path / "ens" / "seed-0" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    code, _, err = run("evaluate", "ens", few_digits.path)
    assert code == 2
    assert "seed-0 has not ended; go on with it" in err
    code, out, err = run("train", "--resume", "--out", "ens", "-q")
    assert code == 0, err
    assert out.count("trained lenet5 for 3 epochs") == 2
    assert "2 nets in ens: convnet evaluate ens" in out
    alone = with_settings(load_recipe("lenet5_small"), ["batch=64", "epochs=3", "seed=1"])
    train(alone, few_digits, tmp_path / "alone")
    kept, expected = (checkpoint.load(tmp_path / name / "last.ckpt") for name in ("ens/seed-1", "alone"))
    assert all((kept.weights[name] == expected.weights[name]).all() for name in expected.weights)
    assert run("train", "--resume", "--out", "ens", "-q")[1].splitlines()[:-1] == []  # nothing is done again
    code, out, err = run("evaluate", "ens", few_digits.path, "--json")
    assert code == 0, err
    assert len(json.loads(out)["rows"]) == 3  # each, and their ensemble


def test_a_chain_from_the_command_line(run: Run, photos: Store, tmp_path: Path) -> None:
    settings = ["size=32", "crop=32", "batch=30", "lr=0.001", "schedule=steps"]
    words = [word for each in settings for word in ("--set", each)]
    options = ["--set", "net_options.input_size=32"]
    words += [*options, "--epochs", "1", "--out", "c", "-q"]
    with thinned(16):
        code, out, err = run("train", photos.path, "--recipe", "vgg_a,vgg_d", *words)
    assert code == 0, err
    assert out.count("trained vgg_") == 2
    start = checkpoint.load(tmp_path / "c" / "vgg_d" / "last.ckpt").provenance["start"]
    assert start["net"] == "vgg_a"
    for wrong in (["--net", "vgg_e"], ["--seeds", "0..1"]):
        assert run("train", photos.path, "--recipe", "vgg_a,vgg_d", *wrong)[0] == 2
    assert run("train", photos.path, "--recipe", "cifar_26,vgg_d")[0] == 2  # of other sizes
    recipe: Recipe = checkpoint.load(tmp_path / "c" / "vgg_a" / "last.ckpt").recipe
    assert recipe.epochs == 1

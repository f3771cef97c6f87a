"""Published results: every experiment can be run, what is measured is right, and a run that was stopped goes on."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run
from convnet.data.sources import Source, open_source
from convnet.errors import DataError, Diverged, Interrupted, UsageError
from convnet.io.signals import Stop
from convnet.nets import MODELS
from convnet.recipe import Recipe
from convnet.results import EPOCHS, ERROR, ILSVRC, Arm, Experiment, Result, published
from convnet.results import reproduce as reproducing
from convnet.results.reproduce import Measured, Plan, keep, plan, table, write
from convnet.results.reproduce import run as run_all
from convnet.results.shown import catalogue, lines, ours, page
from convnet.training import metrics_log
from runs import Notes

DOCS = Path(__file__).parents[2] / "docs/results.md"
SMALL = ("epochs=3", "batch=64", "lr_steps=[]")


def small(measure: str, compare: str, seeds: tuple[int, ...], *arms: Arm) -> Result:
    experiment = Experiment("scikit-learn", "That it runs.", measure, compare, seeds, arms)
    return Result("small", "nobody 2026", "nowhere", "Nothing.", (("a thing", "1 %"),), (), (experiment,))


@pytest.fixture(scope="module")
def few() -> Source:
    source = open_source("digits")
    return replace(source, entries=source.entries[::4])


def test_every_experiment_of_the_file_has_nets_that_can_be_made() -> None:
    assert len(published()) >= 10
    for name, result in published().items():
        assert name == result.id
        assert result.claim
        assert result.published
        assert bool(result.experiments) != bool(result.why_not)
        for experiment in result.experiments:
            assert experiment.shows
            assert experiment.measure in (ERROR, EPOCHS)
            assert experiment.compare in ("ratio", "difference")
            for arm in experiment.arms:
                recipe = arm.recipe_of(0)
                with torch.device("meta"):
                    net = MODELS[recipe.net](**recipe.net_options)
                assert recipe.crop == net.input_size, (name, arm.name)
    assert [row[0] for row in catalogue()[1:]] == list(published())


def test_the_docs_have_the_table_that_the_command_prints() -> None:
    told = DOCS.read_text(encoding="utf-8").split("<!-- table -->\n")[1].split("<!-- end -->")[0]
    assert told.splitlines() == ours()
    assert len(ours()) == len(published()) + 2


@pytest.mark.parametrize("layout", ["tars", "folders"])
def test_every_full_experiment_is_planned_on_a_thousand_classes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """As ImageNet hands them out, or as folders of wnids; no picture is decoded and nothing is prepared."""
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "JPEG")
    for i in range(1000):
        files = {f"val/n{i:08d}/ILSVRC2012_val_{i + 1:08d}.JPEG": picture.getvalue()}
        name = f"n{i:08d}_1.JPEG"
        if layout == "folders":
            files[f"train/n{i:08d}/{name}"] = picture.getvalue()
        else:
            packed, member = io.BytesIO(), tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            with tarfile.open(fileobj=packed, mode="w") as tar:
                tar.addfile(member, io.BytesIO(picture.getvalue()))
            files[f"train/n{i:08d}.tar"] = packed.getvalue()
        for path, data in files.items():
            (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / path).write_bytes(data)
    source = open_source(tmp_path / "in")
    monkeypatch.setattr("convnet.data.sources.open_source", lambda data: source)
    monkeypatch.setattr(reproducing, "_seconds", lambda recipe, source: 0.001)
    full = [each for each in published().values() if any(one.data.startswith(ILSVRC) for one in each.experiments)]
    assert len(full) >= 10
    for each in full:
        code, out, err = run("reproduce", each.id, "--data", "in", "--dry-run", "--json")
        if layout == "tars" and not any("ILSVRC 2012".startswith(one.data) for one in each.experiments):
            assert (code, each.id) == (2, "alexnet.table1"), err  # of 2010's pictures
            continue
        assert (code, err) == (0, ""), each.id
        assert json.loads(out)["shows"] == next(one for one in each.experiments if one.data.startswith(ILSVRC)).shows
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_rate_that_is_too_high_is_left_out(few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are tried; when none is left, it is said."""

    def value(self: object, recipe: Recipe, folder: Path, bound: float | None) -> float:
        if recipe.lr > 1:
            raise Diverged("the loss became nan")
        return 3.0

    monkeypatch.setattr(reproducing._Trainer, "value", value)
    monkeypatch.setattr(reproducing, "store_for", lambda *_: None)
    for rates, lr in (((2.0, 0.1), 0.1), ((2.0, 3.0), None)):
        made, _ = plan(small(EPOCHS, "ratio", (0, 1), Arm("a", "lenet5_small", lr=rates)), few, None, None)
        if lr is None:
            with pytest.raises(Diverged, match="a: every rate of 2, 3 is too high"):
                run_all(made, few, tmp_path)
        else:
            assert run_all(made, few, tmp_path) == [Measured("a", lr, (3.0, 3.0))]


def test_epochs_to_a_training_error_with_the_rate_that_is_fastest(few: Source, tmp_path: Path) -> None:
    arms = (Arm("a", "lenet5_small", settings=("epochs=15", "batch=8", "lr_steps=[]"), lr=(0.002, 0.00001)),
            Arm("b", "lenet5_small", settings=("epochs=1", "batch=8", "lr_steps=[]", "lr=0.00001")))  # fmt: skip
    made, hours = plan(small(EPOCHS, "ratio", (0,), *arms), few, None, None)
    assert hours > 0
    assert made.n_runs() == 3
    measured = run_all(made, few, tmp_path)
    first = measured[0]
    assert first.lr == 0.002
    assert measured[1].values == (None,)  # the target is not reached
    rows = metrics_log.read(tmp_path / "runs" / "a" / "lr-0.002" / "metrics.jsonl")
    errors = [1.0, *(row["train_error"] for row in rows if row["kind"] == "epoch")]
    assert first.values[0] is not None
    assert np.interp(first.values[0], np.arange(len(errors)), errors) == pytest.approx(0.25)  # between two epochs
    assert min(errors[:-1]) > 0.25 >= errors[-1]  # it is not trained on
    content = write(tmp_path, made, measured)
    assert content["rows"][1]["ratio"] is None
    assert [len(line) for line in lines(content)] == [8, 8, 8]


def test_errors_differences_and_what_is_written(few: Source, tmp_path: Path) -> None:
    arms = (Arm("one", "lenet5_small", settings=SMALL), Arm("two/2", "lenet5_small", settings=(*SMALL, "lr=0.0005")))
    result = small(ERROR, "difference", (0, 1), *arms)
    made, _ = plan(result, few, None, None)
    out = tmp_path / "whole"
    assert keep(out, made) == made
    measured = run_all(made, few, out)
    content = write(out, made, measured)
    wrong = [each.wrong for each in measured]
    assert content["rows"][1]["difference"] == pytest.approx(wrong[1].mean() - wrong[0].mean())
    assert content["rows"][0]["mean"] == pytest.approx(wrong[0].mean())
    assert content["rows"][0]["n"] == 90
    assert (out / "runs" / "two-2" / "seed-1" / "best.ckpt").exists() or (out / "runs" / "two-2" / "seed-1").exists()
    assert (out / "results.csv").read_text(encoding="utf-8").count("\n") == 3
    text = page(out, content).read_text(encoding="utf-8")
    assert "two/2" in text
    assert "data:image/png;base64," in text
    assert "http" not in text.replace("http-equiv", "")

    other, stop = tmp_path / "cut", Stop()
    keep(other, made)
    with pytest.raises(Interrupted):
        run_all(made, few, other, progress=Notes(stop, 22), stop=stop)
    assert keep(other, made) == made
    assert write(other, made, run_all(made, few, other)) == content


def test_the_interval_of_a_difference_is_of_the_same_pictures() -> None:
    """Two nets that are wrong on the same pictures differ by nothing for certain; on others by the sum's spread."""
    arms = (Arm("a", "lenet5_small"), Arm("b", "lenet5_small"))
    experiment = small(ERROR, "difference", (0,), *arms)
    made = Plan(experiment, experiment.experiments[0], (0,), {arm.name: arm.recipe_of(0) for arm in arms})
    first, other = np.zeros((1, 400), bool), np.zeros((1, 400), bool)
    first[0, :40], other[0, 20:80] = True, True
    same = table(made, [Measured("a", 1.0, (0.1,), first), Measured("b", 1.0, (0.1,), first.copy())])[1]
    assert (same["difference"], same["difference_interval"]) == (0.0, [0.0, 0.0])
    row = table(made, [Measured("a", 1.0, (0.1,), first), Measured("b", 1.0, (0.15,), other)])[1]
    gaps = np.concatenate([-np.ones(20), np.ones(40), np.zeros(340)])
    spread = 1.959964 * gaps.std(ddof=1) / 20
    assert row["difference"] == pytest.approx(0.05)
    assert row["difference_interval"] == pytest.approx([0.05 - spread, 0.05 + spread])


def test_a_budget_shortens_all_alike(few: Source) -> None:
    arm = Arm("a", "lenet5_small", settings=("epochs=3000", "lr_steps=[1001, 2001]"))
    result = small(ERROR, "difference", (0,), arm)
    whole, hours = plan(result, few, (0,), None)
    made, left = plan(result, few, (0,), hours / 10)
    assert left == hours / 10
    recipe = made.recipes["a"]
    assert 3 <= recipe.epochs < 3000
    assert recipe.epochs == int(3000 * made.shortened)
    assert recipe.lr_steps == tuple(max(2, 1 + round(1000 * n * made.shortened)) for n in (1, 2))
    assert whole.shortened == 1.0
    with pytest.raises(UsageError, match="not one epoch of each net ends"):
        plan(result, few, (0,), hours / 10**7)


def test_another_plan_and_a_damaged_one(few: Source, tmp_path: Path) -> None:
    made, _ = plan(small(ERROR, "difference", (0,), Arm("a", "lenet5_small")), few, None, None)
    keep(tmp_path, made)
    with pytest.raises(UsageError, match="holds another experiment"):
        keep(tmp_path, replace(made, seeds=(1,)))
    path = tmp_path / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'"shortened"', b'"shortenee"'))
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        keep(tmp_path, made)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["alexnet.fig9"], "unknown result 'alexnet.fig9'"),
        (["alexnet.fig1"], "alexnet.fig1 needs --data; it has experiments for CIFAR-10"),
        (["alexnet.fig1", "--data", "digits"], "alexnet.fig1 can't be shown on scikit-learn's digits"),
        (["lenet5.c3"], "lenet5.c3 has no experiment: no net here"),
        (["lenet5.c3", "--data", "digits"], "lenet5.c3 has no experiment: no net here"),
        (["lenet5.mnist", "--data", "digits", "--budget", "soon"], "--budget soon: write hours or minutes"),
        (["lenet5.mnist", "--data", "digits", "--seeds", "1,1"], "a seed stands there twice"),
    ],
)
def test_what_cannot_be_run(run: Run, words: list[str], text: str) -> None:
    code, _, err = run("reproduce", *words)
    assert code == 2
    assert text in err


def test_the_command(run: Run, tmp_path: Path) -> None:
    assert "alexnet.fig1" in run("reproduce")[1]
    code, out, err = run("reproduce", "lenet5.mnist", "--data", "digits", "--dry-run", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["trainings"] == 1
    assert told["hours"] >= 0
    assert list(tmp_path.iterdir()) == []

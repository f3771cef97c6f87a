"""Published results: every experiment can be run, what is measured is right, and a run that was stopped goes on."""

import io
import itertools
import json
import tarfile
from collections import Counter
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run
from convnet import checkpoint
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import DataError, Diverged, Interrupted, UsageError
from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
from convnet.io import strict_json
from convnet.io.atomic import sha256_file
from convnet.io.signals import Stop
from convnet.nets import MODELS
from convnet.nets.describe import summary
from convnet.progress import Silent
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.results import EPOCHS, ERROR, ILSVRC, Arm, Experiment, Result, published, wanted
from convnet.results import plan as planning
from convnet.results import reproduce as reproducing
from convnet.results import table as tabling
from convnet.results.data import Data
from convnet.results.plan import Need, Plan, begun, keep, plan
from convnet.results.reproduce import Measured, side_to_test
from convnet.results.reproduce import run as run_all
from convnet.results.shown import catalogue, lines, ours, page, remarks
from convnet.results.table import table, write
from convnet.training import metrics_log
from convnet.visualize.curves import draw_curves
from forked import run as forked
from runs import Notes
from thin import thinned

DOCS = Path(__file__).parents[2] / "docs/results.md"
DATA = attrgetter("data")
SMALL = ("epochs=3", "batch=64", "lr_steps=[]")


def small(measure: str, compare: str, seeds: tuple[int, ...], *arms: Arm, **more: Any) -> Result:
    experiment = Experiment("scikit-learn", "That it runs.", measure, compare, seeds, arms, **more)
    return Result("small", "nobody 2026", "nowhere", "Nothing.", (("a thing", "1 %"),), (), (experiment,))


@pytest.fixture(scope="module")
def few() -> Data:
    source = open_source("digits")
    return Data.of(replace(source, entries=source.entries[::4]))


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
            assert experiment.data in wanted()
            arms = [arm.name for arm in experiment.arms]
            assert all(set(of) <= set(arms) for of in experiment.fused.values())
            for i, arm in enumerate(experiment.arms):
                assert experiment.measure == EPOCHS or not arm.lr
                assert experiment.measure == ERROR or not arm.begins
                assert arm.begins in (None, *arms[:i])
                recipe = arm.recipe_of(0)
                with torch.device("meta"):
                    net = MODELS[recipe.net](**recipe.net_options)
                assert recipe.crop == net.input_size, (name, arm.name)
            if experiment.measure == ERROR:
                side_to_test(Plan(result, experiment, (0,), {arm.name: arm.recipe_of(0) for arm in experiment.arms}))
    assert list(dict.fromkeys(row["result"] for row in catalogue())) == list(published())


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
    monkeypatch.setattr("convnet.results.data.open_source", lambda data: source)
    monkeypatch.setattr(planning, "need", lambda recipe, n_classes, device: Need(0.001, 10**9))
    full = [each for each in published().values() if any(one.data.startswith(ILSVRC) for one in each.experiments)]
    assert len(full) >= 10
    for each in full:
        code, out, err = run("reproduce", each.id, "--data", "in", "--dry-run", "--json")
        if layout == "tars" and not any("ILSVRC 2012".startswith(one.data) for one in each.experiments):
            assert (code, each.id) == (2, "alexnet.table1"), err  # of 2010's pictures
            continue
        assert (code, err) == (0, ""), each.id
        of = "ILSVRC 2012" if layout == "tars" else ILSVRC
        assert json.loads(out)["shows"] == next(one for one in each.experiments if one.data.startswith(of)).shows
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_rate_that_is_too_high_is_left_out(few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are tried; when none is left, it is said."""

    def epochs(self: object, recipe: Recipe, folder: Path, bound: float | None = None) -> float | None:
        if recipe.lr > 1:
            raise Diverged("the loss became nan")
        return 3.0

    monkeypatch.setattr(reproducing._Runs, "epochs", epochs)
    for rates, lr in (((2.0, 0.1), 0.1), ((2.0, 3.0), None)):
        made = plan(small(EPOCHS, "ratio", (0, 1), Arm("a", "lenet5_small", lr=rates)), few, None)
        if lr is None:
            with pytest.raises(Diverged, match="a: every rate of 2, 3 is too high"):
                run_all(made, few, tmp_path)
        else:
            (measured,) = run_all(made, few, tmp_path)
            assert (measured.lr, measured.values) == (lr, (3.0, 3.0))
            assert [folder.name for folder in measured.runs] == ["lr-0.1", "seed-1"]


def test_where_no_rate_reaches_the_target_the_least_error_counts(
    few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproducing._Runs, "epochs", lambda self, recipe, folder, bound=None: None)
    monkeypatch.setattr(reproducing, "_errors", lambda folder: [0.9, 0.4 if folder.name == "lr-0.2" else 0.5])
    made = plan(small(EPOCHS, "ratio", (0,), Arm("a", "lenet5_small", lr=(0.1, 0.2, 0.3))), few, None)
    (measured,) = run_all(made, few, tmp_path)
    assert (measured.lr, measured.values) == (0.2, (None,))


def test_epochs_to_a_training_error_with_the_rate_that_is_fastest(
    few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        tabling, "draw_curves", lambda runs: drawn.extend(run.name for run in runs) or draw_curves(runs)
    )
    arms = (Arm("a", "lenet5_small", settings=("epochs=15", "batch=8", "lr_steps=[]"), lr=(0.002, 0.00001)),
            Arm("b", "lenet5_small", settings=("epochs=1", "batch=8", "lr_steps=[]", "lr=0.00001")))  # fmt: skip
    made = plan(small(EPOCHS, "ratio", (0,), *arms), few, None)
    assert made.hours
    assert made.memory
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
    assert first.runs == (tmp_path / "runs" / "a" / "lr-0.002",)
    content = write(tmp_path, made, measured)
    assert drawn == ["a, seed 0", "b, seed 0"]  # not of the other rate
    assert content["rows"][1]["ratio"] is None
    assert [len(line) for line in lines(content)] == [8, 8, 8]


def test_errors_differences_and_what_is_written(few: Data, tmp_path: Path) -> None:
    """Two arms, of which one begins with the other's nets, each tested in two ways, and all averaged."""
    two = Arm("two/2", "lenet5_small", settings=(*SMALL, "lr=0.0005"), begins="one")
    arms, views = (Arm("one", "lenet5_small", settings=SMALL), two), ("single", "single at 40")
    result = small(ERROR, "difference", (0, 1), *arms, views=views, fused={"four": ("one", "two/2")})
    made = plan(result, few, None)
    out = tmp_path / "whole"
    assert side_to_test(made) == 40
    assert keep(out, made) == made
    measured = run_all(made, few, out)
    content = write(out, made, measured)
    names = [(row["arm"], row["views"]) for row in content["rows"]]
    assert names == [(arm, view) for arm in ("one", "two/2", "four") for view in views]
    wrong = [each.ranks >= 1 for each in measured if each.ranks is not None]
    for row, own in zip(content["rows"][1:], wrong[1:], strict=True):
        assert row["difference"] == pytest.approx(own.mean() - wrong[0].mean())
    assert content["rows"][0]["mean"] == pytest.approx(wrong[0].mean())
    assert content["rows"][0]["n"] == 90
    assert (out / "results.csv").read_text(encoding="utf-8").count("\n") == 7
    assert "np." not in (out / "results.csv").read_text(encoding="utf-8")  # a list with a NumPy number shows its type
    text = page(out, content).read_text(encoding="utf-8")
    assert "two/2" in text
    assert "data:image/png;base64," in text
    assert remarks(content) == []
    assert len(remarks({"share_of_epochs": 0.1, "rows": [{"split": "val"}]})) == 2
    assert "http" not in text.replace("http-equiv", "")
    assert json.loads((out / "environment.json").read_bytes())["torch"] == torch.__version__

    runs = out / "runs"
    for seed in ("seed-0", "seed-1"):
        start = checkpoint.load(runs / "two-2" / seed / "last.ckpt").provenance["start"]
        assert start["sha256"] == sha256_file(checkpoint_at(runs / "one" / seed))
    nets = [TrainedNet.load(runs / arm / f"seed-{seed}") for arm in ("one", "two-2") for seed in (0, 1)]
    alone = nets[1].evaluate(out / "store-28")
    assert ((alone.ranks >= 1) == wrong[0][1]).all()
    wide = [net.evaluate(out / "tested-40", scales="40") for net in nets]
    assert [each.top1 for each in wide] == pytest.approx([*measured[1].values, *measured[3].values])

    assert few.source
    fewer = Data.of(prepare(replace(few.source, entries=few.source.entries[::2]), tmp_path / "fewer", size=28))
    with pytest.raises(UsageError, match=r"was begun with other pictures, .*store-28; choose another --out"):
        run_all(made, fewer, out)

    other, stop = tmp_path / "cut", Stop()
    keep(other, made)
    with pytest.raises(Interrupted):
        run_all(made, few, other, progress=Notes(stop, 22), stop=stop)
    assert keep(other, made) == made
    assert write(other, made, run_all(made, few, other)) == content


@pytest.mark.large
@pytest.mark.parametrize(
    "name", [name for name, row in published().items() if "class folders" in map(DATA, row.experiments)]
)
def test_an_experiment_on_class_folders_runs_to_its_end(name: str, tmp_path: Path) -> None:
    """With an epoch on a few pictures and nets of a sixteenth of their width."""
    generator = np.random.default_rng(0)
    for split, k, i in itertools.product(("train", "val"), range(3), range(5)):
        path = tmp_path / "in" / split / str(k) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (160, 180, 3), np.uint8)).save(path)
    data = Data.of(open_source(tmp_path / "in"))
    experiment = data.serves(published()[name])
    assert experiment
    recipes = {arm.name: replace(arm.recipe_of(0), epochs=1, lr_steps=(), batch=5) for arm in experiment.arms}
    made = Plan(published()[name], experiment, experiment.seeds[:2], recipes)
    with thinned(16):
        content = write(tmp_path, made, run_all(made, data, tmp_path))
    n_views = [len(experiment.views_of(arm)) for arm in experiment.arms]
    assert len(content["rows"]) == sum(n_views) + len(experiment.fused) * n_views[0]
    assert [row["n"] for row in content["rows"]] == [15] * len(content["rows"])


def test_killed_at_any_moment_it_goes_on(few_digits: Store, tmp_path: Path) -> None:
    """Of a store; killed (-9) before a file gets its name, again and again, it ends with the same numbers."""
    cut = tmp_path / "cut"
    files = ("plan.json", "runs/a/seed-0/last.ckpt", "runs/a/seed-0/summary.json", "runs/a/seed-1/test.posteriors",
             "runs/b/seed-0/last.previous.ckpt", "results.csv")  # fmt: skip
    calls = [(tmp_path / "whole", "no file"), *((cut, cut / name) for name in files), (cut, "no file")]
    jobs = [(1, [str(few_digits.path), str(out), str(moment)]) for out, moment in calls]
    ended = forked("kill_driver:reproduces", jobs)
    assert [each.codes for each in ended] == [[0], *([[-9]] * len(files)), [0]], ended[-1].stderr
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (cut / name).read_bytes(), name


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


def test_a_budget_shortens_all_alike(few: Data) -> None:
    arm = Arm("a", "lenet5_small", settings=("epochs=3000", "lr_steps=[1001, 2001]"))
    result = small(ERROR, "difference", (0,), arm)
    whole = plan(result, few, (0,))
    assert whole.hours
    hours = whole.hours
    made = plan(result, few, (0,), hours / 10)
    assert made.hours == hours / 10
    recipe = made.recipes["a"]
    assert 3 <= recipe.epochs < 3000
    assert recipe.epochs == int(3000 * made.shortened)
    assert recipe.lr_steps == tuple(max(2, 1 + round(1000 * n * made.shortened)) for n in (1, 2))
    assert whole.shortened == 1.0
    with pytest.raises(UsageError, match="not one epoch of each net ends"):
        plan(result, few, (0,), hours / 10**7)


def test_another_plan_and_a_damaged_one(few: Data, tmp_path: Path) -> None:
    made = plan(small(ERROR, "difference", (0,), Arm("a", "lenet5_small")), few, None)
    keep(tmp_path, made)
    with pytest.raises(UsageError, match="holds another experiment"):
        keep(tmp_path, replace(made, seeds=(1,)))
    (tmp_path / "environment.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"environment\.json is damaged .* remove it"):
        run_all(made, few, tmp_path)
    path = tmp_path / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'"shortened"', b'"shortenee"'))
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        keep(tmp_path, made)


def test_a_plan_that_is_there_is_not_made_again(few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the command; one of an earlier version, which told neither hours nor memory, goes on."""
    experiment = published()["lenet5.mnist"].experiments[1]
    made = plan(published()["lenet5.mnist"], few, None)
    keep(tmp_path / "new", made)
    assert begun(tmp_path / "new", made.result, experiment, (0,)) == made
    assert begun(tmp_path / "none", made.result, experiment, (0,)) is None
    content = strict_json.unseal((tmp_path / "new" / "plan.json").read_bytes())
    (tmp_path / "old").mkdir()
    older = {name: value for name, value in content.items() if name not in ("hours", "memory", "sha256")}
    (tmp_path / "old" / "plan.json").write_bytes(strict_json.seal(older))
    monkeypatch.setattr(planning, "need", None)
    assert keep(tmp_path / "old", replace(made, shortened=0.5)) == replace(made, hours=None, memory=None)


def test_what_the_data_lack(few: Data) -> None:
    digits = published()["lenet5.mnist"].experiments[1]
    assert list(few.lacks(digits)) == ["315 training pictures of 1,259", "90 test pictures of 359"]
    hundred = replace(few, kind="CIFAR-100, binary")
    with pytest.raises(UsageError, match=r"can't be shown on CIFAR-100, binary"):
        published()["cifar.26"].experiment(hundred.kind)
    rows = {(row["result"], row["experiment on"]): row for row in catalogue(few)}
    assert rows["lenet5.mnist", "scikit-learn"]["your data"].startswith("315 training pictures")
    assert rows["lenet5.mnist", "IDX"]["your data"] == "other data"
    folders = replace(few, kind="class folders", n=Counter(train=9469, val=100))
    own, others = catalogue(folders), catalogue()
    assert [row["CPU hours"] for row in own] == [row["CPU hours"] for row in others]  # the example's number
    suffice = [row["result"] for row in own if row["your data"] == "suffice"]
    assert "alexnet.layers" in suffice
    assert "alexnet.fig1" not in suffice


def test_hours_by_multiply_adds() -> None:
    """Five nets: forward and twice as much backward, at 25 giga multiply-adds a second and 0.3 ms a picture besides."""
    experiment, recipe = published()["alexnet.table2"].experiments[0], load_recipe("alexnet_2012")
    seconds = 5 * recipe.epochs * 1000 * (3 * summary(recipe.net)["multiply_adds"] / 25e9 + 3e-4)
    assert planning.cost(experiment, 1000, planning.CORE) == pytest.approx(seconds / 3600)


def test_the_time_left_is_that_of_all_nets(few: Data, tmp_path: Path) -> None:
    """Of the first of four: the rest of its own epochs, and those of the others."""
    arms = (Arm("a", "lenet5_small", settings=SMALL), Arm("b", "lenet5_small", settings=(*SMALL, "epochs=1")))
    told: list[tuple[str, int]] = []

    class Starts(Silent):
        def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
            told.append((what, after))

    made = plan(small(ERROR, "difference", (0, 1), *arms), few, None)
    run_all(made, few, tmp_path, progress=Starts())
    epochs = [row for row in told if ", epoch " in row[0]]
    assert epochs[0] == ("net 1 of 4, epoch 1/3", (2 + 3 + 1 + 1) * 315)
    assert epochs[-1] == ("net 4 of 4, epoch 1/1", 0)


def test_memory_of_a_step() -> None:
    """At least weights, velocity and gradients; and for each picture more what the first layer read."""
    recipe = with_settings(load_recipe("lenet5_small"), ["precision=fp32"])
    few, many = (planning.need(replace(recipe, batch=batch), 10, "cpu").memory for batch in (100, 1000))
    assert few > 3 * 4 * summary("lenet5", **recipe.net_options)["parameters"]
    assert many - few > 900 * 4 * recipe.crop**2


def test_a_store_serves_as_it_is(run: Run, few_digits: Store, photos: Store) -> None:
    code, out, err = run("reproduce", "lenet5.mnist", "--data", few_digits.path, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["stores_gb"] == 0
    assert json.loads(out)["suffices"].startswith("315 training pictures")
    code, _, err = run("reproduce", "alexnet.crops", "--data", photos.path, "--dry-run")
    assert code == 2
    assert "holds pictures of 32 pixels in a shorter side of 32 by crop, and AlexNet wants 256 in 256 by crop" in err


def test_the_device_is_the_one_that_is_timed(few: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(planning, "need", lambda recipe, n_classes, device: asked.append(device) or Need(1.0, 1))
    alike = (Arm("a", "lenet5_small"), Arm("b", "lenet5_small", settings=("lr=0.1",)))
    made = plan(small(ERROR, "difference", (0,), *alike), few, None, None, "cuda:1")
    assert asked == ["cuda:1"]  # once, as they take the same
    assert made.hours == 2 * 30 * 315 / 3600


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["alexnet.fig9"], "unknown result 'alexnet.fig9'"),
        (["alexnet.fig1"], "alexnet.fig1 needs --data; it has experiments for CIFAR-10"),
        (["alexnet.fig1", "--data", "digits"], "alexnet.fig1 can't be shown on scikit-learn's digits"),
        (["nin.pooling"], "nin.pooling has no experiment: no net here"),
        (["nin.pooling", "--data", "digits"], "nin.pooling has no experiment: no net here"),
        (["lenet5.mnist", "--data", "digits", "--budget", "soon"], "--budget soon: write hours or minutes"),
        (["lenet5.mnist", "--data", "digits", "--seeds", "1,1"], "a seed stands there twice"),
    ],
)
def test_what_cannot_be_run(run: Run, words: list[str], text: str) -> None:
    code, _, err = run("reproduce", *words)
    assert code == 2
    assert text in err


def test_the_command(run: Run, tmp_path: Path) -> None:
    code, out, err = run("reproduce", "--data", "digits")
    assert code == 0, err
    assert "alexnet.fig1" in out
    lines = [line for line in out.splitlines() if "scikit-learn" in line]
    assert [line.split()[0] for line in lines] == ["lenet5.mnist", "lenet5.c3"]
    assert all(line.endswith("suffice") for line in lines)
    code, out, err = run("reproduce", "lenet5.mnist", "--data", "digits", "--dry-run", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["trainings"] == 1
    assert told["hours"] >= 0
    assert told["memory_gb"] >= 0
    assert told["suffices"] == "yes"
    assert list(tmp_path.iterdir()) == []

"""The page of a run: it says what the run's files say, names are names, and what is missing is said."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run
from convnet.cli import report as cli_report
from convnet.data.store import Store
from convnet.errors import DataError, UsageError
from convnet.evaluation.metrics import interval
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import strict_json
from convnet.progress import Silent
from convnet.recipe import load_recipe, with_settings
from convnet.report import chart, findings, record, report
from convnet.training import metrics_log
from convnet.training.train import train
from convnet.visualize.curves import Curves
from runs import SCRIPT, hostile_run

MEGABYTE = 1_000_000


class Told(Silent):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Page(HTMLParser):
    """A page as a browser reads it: its elements, its text, and what they refer to."""

    VOID = ("meta", "link", "img", "input", "line", "polyline", "circle", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, object]:
        return dict(json.loads(self.scripts[0]))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def trained(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(with_settings(load_recipe("lenet5_small"), ["epochs=3", "batch=16"]), few_digits, out)
    return out


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report(trained, tmp_path_factory.mktemp("page") / "page.html"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile"), (SCRIPT, "b\"'$x$", "\x1b[31mred\u202e, dead"))


def self_contained(page: Page) -> None:
    """Everything is in the file, and its policy lets nothing be fetched and no other script run."""
    assert all((each["src"] or "").startswith("data:image/") for each in page.all("img"))
    assert [each["href"] for each in page.all("link")] == ["data:,"]
    assert all((each["href"] or "").startswith("#") for each in page.all("a"))
    assert not [tag for tag, _ in page.elements if tag in ("iframe", "object", "embed", "video", "audio", "base")]
    assert not re.search(r"url\(|@import|https?:", page.source)
    policy = next(each["content"] or "" for each in page.all("meta") if "http-equiv" in each)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{digest}';" in policy
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not handlers


def test_it_says_what_the_run_says(page: Page, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    for name in ("test", "validation"):
        for error in ("top1_error", "top5_error"):
            rate, n = summary[name][error], summary[name]["n"]
            low, high = interval(rate, n)
            assert f"{100 * rate:.1f} % 95 %: {100 * low:.1f} % to {100 * high:.1f} %; n {n:,}" in page.text
    for text in (
        "60,000",
        "lenet5_small",
        "train 315, val 45, test 90",
        "torch 2",
        "3 epochs, 60 steps",
        "lr_steps",
    ):
        assert text in page.text
    assert "chose the net, so their errors are a little too good" not in page.text, "there is a test"
    self_contained(page)


def test_its_matrix_and_table_are_those_of_a_test(page: Page, trained: Path, few_digits: Store) -> None:
    scores = TrainedNet.load(trained, "cpu").evaluate(few_digits)
    matrix = page.data["matrix"]
    assert matrix["names"] == list(few_digits.classes)  # type: ignore[index,call-overload]
    found = np.zeros((10, 10), int)
    for i, j, count in matrix["entries"]:  # type: ignore[index,call-overload]
        found[i, j] = count
    assert np.array_equal(found, scores.confusion)
    cells = [float(each["data-number"] or 0) for each in page.all("td") if "data-number" in each]
    rows = np.array(cells).reshape(10, 4)
    assert rows[:, 0].tolist() == scores.confusion.sum(1).tolist()
    np.testing.assert_allclose(rows[:, 1], [row["top1_error"] for row in scores.per_class()])
    np.testing.assert_allclose(rows[:, 2], [row["top5_error"] for row in scores.per_class()])
    assert "All 90 pictures." in page.text


def test_of_many_classes_those_with_the_most_errors_are_shown(
    trained: Path, few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = TrainedNet.load(trained, "cpu").evaluate(few_digits)
    errors = scores.confusion.sum(1) - scores.confusion.diagonal()
    shown = sorted(sorted(range(10), key=lambda k: (-errors[k], -scores.confusion[k].sum(), k))[:4])
    monkeypatch.setattr(findings, "CLASSES", 4)
    page = Page(report(trained, tmp_path / "page.html"))
    matrix: Any = page.data["matrix"]
    assert matrix["names"] == [few_digits.classes[k] for k in shown]
    assert matrix["sizes"] == scores.confusion[shown].sum(1).tolist()
    found = np.zeros((4, 4), int)
    for i, j, count in matrix["entries"]:
        found[i, j] = count
    np.testing.assert_array_equal(found, scores.confusion[np.ix_(shown, shown)])
    assert len([each for each in page.all("td") if "data-number" in each]) == 4 * 4
    for text in ("Among the 4 of 10 classes with the most errors", "The 4 of 10 classes with the most errors"):
        assert text in page.text


def test_the_same_run_gives_the_same_page_and_nothing_else_changes(page: Page, trained: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    path = report(trained)
    assert path == trained / "report.html"
    assert path.read_text(encoding="utf-8") == page.source
    path.unlink()
    assert {each.name: each.read_bytes() for each in trained.iterdir()} == before


def test_only_so_many_pictures_are_looked_at(trained: Path, tmp_path: Path) -> None:
    few = Page(report(trained, tmp_path / "few.html", pictures=40))
    assert sum(count for _, _, count in few.data["matrix"]["entries"]) == 40  # type: ignore[index,call-overload]
    assert "Of 40 of the 90 pictures" in few.text
    with pytest.raises(UsageError, match="--pictures 0: at least 1"):
        report(trained, tmp_path / "none.html", pictures=0)
    assert not (tmp_path / "none.html").exists()


def test_names_are_names(hostile: Path) -> None:
    page = Page(report(hostile))
    self_contained(page)
    assert len(page.scripts) == 2
    assert "\x1b" not in page.source
    assert "\u202e" not in page.source
    assert "alert(" not in page.scripts[1]
    assert "<" not in page.scripts[0], "the data can't end its script"
    assert page.data["matrix"]["names"] == [SCRIPT, "b\"'$x$", "?[31mred?"]  # type: ignore[index,call-overload]
    assert SCRIPT in page.text
    titles = {each.get("title") for each in page.all("img")}
    assert any(title and title.endswith("onerror=alert(1)>.png") for title in titles)
    assert "49" not in {title and title.rpartition("/")[2] for title in titles}, "a name is no template"
    assert 'failed val/c0000/"><script>alert(2).png' in page.text
    assert "convnet train <script>alert(1)</script>" in page.text
    assert "their errors are a little too good" in page.text, "there is no test"
    assert all(set(each) <= {"src", "alt", "title", "class"} for each in page.all("img"))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_without_its_store_it_says_so(copy: Path, few_digits: Store, photos: Store) -> None:
    environment = strict_json.unseal((copy / "environment.json").read_bytes())
    (copy / "environment.json").write_bytes(strict_json.seal(environment | {"store": "/nowhere"}))
    page = Page(report(copy))
    assert "the store /nowhere is not there; if it moved, name it with --store" in page.text
    assert "60,000" in page.text
    assert page.all("polyline")
    assert len(page.all("img")) == 1, "the kernels"
    assert "confusion" not in {each.get("id") for each in page.all("section")}
    moved = Page(report(copy, store=few_digits.path))
    assert "Missing here" not in moved.text
    assert "confusion" in {each.get("id") for each in moved.all("section")}
    (copy / "environment.json").write_bytes(strict_json.seal(environment | {"store": "x" * 300}))
    assert f"the store {'x' * 300} is not there" in Page(report(copy)).text, "longer than a name may be"
    told = Told()
    other = Page(report(copy, store=photos.path, progress=told))
    assert len(told.warnings) == 1
    assert "the page lacks the pictures: " in told.warnings[0]
    assert "is another store than the one that the run was trained on" in other.text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("summary.json", None, "there is no summary.json: the run has not finished"),
        ("summary.json", b"{", "summary.json is damaged, the run has not finished"),
        ("summary.json", b"[1]", "summary.json is damaged, the run has not finished: not an object"),
        ("summary.json", b'{"test": {"n": 0}}', "the errors: KeyError: 'top1_error'"),
        ("environment.json", None, "there is no environment.json: hardware and versions are those of the net"),
        ("environment.json", b'{"store": "x", "sha256": "0"}', "environment.json is damaged"),
        ("recipe.toml", b"lr = -1", "the recipe:"),
        ("metrics.jsonl", None, "the curves:"),
        ("metrics.jsonl", b"x\n", "not a row of JSON"),
        ("best.ckpt", b"x", "the net:"),
    ],
)
def test_what_is_missing_or_damaged_is_said(copy: Path, name: str, content: bytes | None, text: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    page = Page(report(copy))
    assert text in page.text
    assert "Missing here" in page.text
    self_contained(page) if len(page.scripts) == 2 else None


def test_a_run_that_has_not_finished_has_its_page(copy: Path) -> None:
    (copy / "summary.json").unlink()
    (copy / "best.ckpt").unlink()
    page = Page(report(copy))
    assert "3 of 3 epochs so far" in page.text
    assert "neighbours" in {each.get("id") for each in page.all("section")}, "the last net"


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        report(tmp_path)


def test_a_thousand_classes_take_less_than_ten_megabytes(tmp_path: Path) -> None:
    classes = tuple(f"n{k:08d} a class with a name of usual length, its synonym {k}" for k in range(1000))
    run = hostile_run(tmp_path, classes, train_pictures=1, val_pictures=1, epochs=1)
    path = report(run)
    page = Page(path)
    assert len(page.all("tr")) >= 1001
    assert "All 1,000 pictures." in page.text
    assert path.stat().st_size < 10 * MEGABYTE
    self_contained(page)


# the parts


def test_a_chart_is_its_numbers() -> None:
    nan = float("nan")
    run = Curves(
        "run", np.arange(1, 6), np.array([0.1, 0.1, 0.01, 0.01, 0.01]), np.array([4.0, 3, nan, 1, 0.5]),
        *(np.array([0.8, 0.6, 0.4, 0.2, 0.1]), np.full(5, nan), np.full(5, nan), np.full(5, nan)),
    )  # fmt: skip
    loss, error = chart.charts(run)
    assert [line["name"] for line in loss["lines"]] == ["training"], "a line without a value isn't there"
    first, second = loss["lines"][0]["points"]
    assert (len(first), len(second)) == (2, 2), "broken where a value is missing"
    assert loss["lines"][0]["values"] == [4.0, 3.0, None, 1.0, 0.5]
    assert [x for x, _ in [*first, *second]] == [loss["x"][k] for k in (0, 1, 3, 4)]
    (_, top), (_, below) = first
    bottom = {text: y for y, text in loss["up"]}["0"]
    assert (bottom - top) / (bottom - below) == pytest.approx(4 / 3, rel=1e-2)
    assert loss["drops"] == [(pytest.approx((loss["x"][1] + loss["x"][2]) / 2, abs=0.2), "0.01")]
    assert [text for _, text in error["up"]] == ["0%", "20%", "40%", "60%", "80%"]
    one = chart.charts(Curves("run", *(np.array([2]), *(np.array([0.5]),) * 6)))[0]
    assert [len(piece) for piece in one["lines"][0]["points"]] == [1]


@pytest.mark.parametrize(("low", "high"), [(0, 1e-6), (0, 0.03), (1, 20), (1, 90), (0, 12345.0), (0, 7)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = chart.ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low - 1e-12 <= found[0] <= found[-1] <= high * (1 + 1e-9)
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.0e}"[0] in "125"


def test_without_a_test_the_held_out_pictures_are_shown(photos: Store, digits: Store) -> None:
    recipe = load_recipe("lenet5_small")
    split, ids, total, train_ids = findings.pictures_of_run(recipe, digits, 100)
    assert (split.name, len(ids), total, len(train_ids)) == ("test", 100, 359, 1259)
    only = Store(digits.path)
    for name in ("val", "test"):
        del only.splits[name]
    split, ids, total, train_ids = findings.pictures_of_run(recipe, only, 100)
    assert (split.name, len(ids), total, len(train_ids)) == ("train", 100, 126, 1133)
    assert not set(ids.tolist()) & set(train_ids.tolist())
    with pytest.raises(UsageError, match="has training pictures only"):
        findings.pictures_of_run(with_settings(recipe, ["validation=0.0"]), only, 100)


def test_a_record_is_read_once_more_without_its_files(copy: Path) -> None:
    for name in ("timing.jsonl", "metrics.jsonl", "summary.json", "environment.json", "recipe.toml"):
        (copy / name).unlink()
    told = record.read(copy)
    assert told.checkpoint is not None
    assert len(told.missing) == 4, "the store is found by what the net's file says"
    assert told.store is not None


# the command


def test_the_command(run: Run, trained: Path) -> None:
    code, out, err = run("report", trained, "--out", "page.html", "-q", "--pictures", "20")
    assert (code, out, err) == (0, "written: page.html\n", "")
    assert run("report", trained, "--out", "best.ckpt")[0] == 2
    code, _, err = run("report", "nowhere")
    assert code == 2
    assert "nowhere holds no run" in err
    Path("names.txt").write_text("0 zero, null\n7 seven\n", encoding="utf-8")
    assert run("report", trained, "--out", "page.html", "-q", "--pictures", "20", "--names", "names.txt")[0] == 0
    assert Page(Path("page.html")).data["matrix"]["names"] == ["zero", *"123456", "seven", *"89"]  # type: ignore[index,call-overload]
    code, out, _ = run("report", "--help")
    assert code == 0
    assert "convnet report runs/photos" in out
    with pytest.raises(DataError):
        report(trained, names=Path("none.txt"))


def test_training_ends_with_it(run: Run, few_digits: Store) -> None:
    quick = ["--epochs", "1", "--set", "batch=16", "-q"]
    code, out, err = run("train", few_digits.path, *quick, "--out", "run")
    assert (code, err) == (0, "")
    assert out.endswith("net: run/best.ckpt\nreport: run/report.html\n")
    assert "convnet train " in Page(Path("run/report.html")).text
    code, out, _ = run("train", few_digits.path, *quick, "--resume", "--out", "run", "--json")
    assert code == 2, "only epochs may change"
    code, out, _ = run("train", "--resume", "--out", "run", "--epochs", "2", "--json", "-q")
    assert json.loads(out)["report"] == "run/report.html"
    assert [row["epoch"] for row in metrics_log.read(Path("run/metrics.jsonl")) if row["kind"] == "epoch"] == [1, 2]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_report_that_fails_loses_nothing(
    error: BaseException, run: Run, few_digits: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("convnet.report.report", fail)
    code, out, err = run("train", few_digits.path, "--epochs", "1", "--set", "batch=16", "--out", "run", "-q")
    assert code == 0
    assert out.endswith("net: run/best.ckpt\n")
    assert "warning: " in err
    assert "the run is complete without it; convnet report run writes it" in err
    assert cli_report.after_training(Path("run"), Silent()) is None


def test_a_locale_without_utf_8_gives_the_same_page(hostile: Path, tmp_path: Path) -> None:
    """`C` without Python's UTF-8 mode: text whose encoding isn't named would be ASCII."""
    out, ours = tmp_path / "c.html", tmp_path / "ours.html"
    command = [sys.executable, "-m", "convnet", "report", str(hostile), "--out", str(out), "-q"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "CONVNET_KERNELS": "plain"}
    done = subprocess.run(command, env=os.environ | locale, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Page(out).data == Page(report(hostile, ours)).data
    assert " · convnet</title>" in out.read_text(encoding="utf-8")

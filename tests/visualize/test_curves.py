"""Curves: the record of a run as arrays, and as figure 1."""

import json
from pathlib import Path

import numpy as np
import pytest

from convnet.errors import DataError, UsageError
from convnet.visualize import plot
from convnet.visualize.curves import curves, draw_curves


def record(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def epoch(number: int, lr: float, train: float, val: float | None = None) -> dict[str, object]:
    row: dict[str, object] = {"kind": "epoch", "epoch": number, "step": 10 * number, "lr": lr}
    row |= {"train_loss": 4 * train, "train_error": train}
    return row if val is None else row | {"val_loss": 4 * val, "val_top1_error": val, "val_top5_error": val / 2}


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    step = {"kind": "step", "epoch": 1, "step": 1, "lr": 0.01, "loss": 9.0, "error": 1.0}
    rates, errors = (0.01, 0.01, 0.001, 0.001, 0.0001), (0.8, 0.6, 0.4, 0.3, 0.25)
    return record(tmp_path / "relu", [step, *(epoch(i + 1, rates[i], errors[i], errors[i]) for i in range(5))])


def test_a_record_is_read_by_epoch(relu: Path) -> None:
    run = curves(relu)
    assert run.name == "relu"
    assert run.epochs.tolist() == [1, 2, 3, 4, 5]
    assert run.train_error.tolist() == run.val_top1_error.tolist() == [0.8, 0.6, 0.4, 0.3, 0.25]
    assert run.val_top5_error.tolist() == [0.4, 0.3, 0.2, 0.15, 0.125]
    assert run.train_loss.tolist() == run.val_loss.tolist() == [3.2, 2.4, 1.6, 1.2, 1.0]
    assert run.lr_changes() == [(3, 0.001), (5, 0.0001)]


def test_what_is_missing_or_not_finite(tmp_path: Path) -> None:
    rows = [epoch(1, 0.1, 0.5), epoch(2, 0.1, 0.5) | {"train_loss": "inf"}, epoch(3, 0.1, 0.4) | {"train_loss": "nan"}]
    run = curves(record(tmp_path / "run", rows))
    assert np.isnan(run.val_loss).all()
    assert run.train_loss[1] == np.inf
    assert np.isnan(run.train_loss[2])
    made = draw_curves([run])
    assert [len(axes.lines) for axes in made.axes] == [1, 1]  # no validation, no line
    shown = np.asarray(made.axes[0].lines[0].get_ydata(), float)
    np.testing.assert_array_equal(shown, [2.0, np.nan, np.nan])


BAD = {
    "no metrics.jsonl in it; name a run's folder": None,
    "no epoch has ended yet": [{"kind": "step", "epoch": 1}],
    "the epochs do not follow each other": [epoch(2, 0.1, 0.5), epoch(1, 0.1, 0.5)],
    "train_loss is 'much', no number": [epoch(1, 0.1, 0.5) | {"train_loss": "much"}],
}


@pytest.mark.parametrize("text", BAD)
def test_records_that_cannot_be_drawn(tmp_path: Path, text: str) -> None:
    rows = BAD[text]
    folder = tmp_path if rows is None else record(tmp_path / "run", rows)
    with pytest.raises(UsageError if rows is None else DataError, match=text) as caught:
        curves(folder)
    assert str(caught.value).startswith(str(folder))


def test_one_run_has_losses_errors_and_rates(relu: Path) -> None:
    made = draw_curves([curves(relu)])
    loss, error = made.axes
    names = ["training", "validation"]
    rates = ["lr 0.001", "lr 0.0001"]
    assert sorted(text.get_text() for text in loss.texts) == sorted(names + rates)
    assert sorted(text.get_text() for text in error.texts) == sorted([*names, "validation, top 5", *rates])
    assert [line.get_xdata()[0] for line in error.lines if line.get_linestyle() == ":"] == [2.5, 4.5]
    heights = sorted(text.get_position()[1] for text in loss.texts if text.get_text() in names)
    assert heights[1] - heights[0] > 0.1  # the ends coincide, the names do not


def test_several_runs_are_figure_1(relu: Path, tmp_path: Path) -> None:
    tanh = record(tmp_path / "_<i>tanh $x$", [epoch(i, 0.01, 1 - i / 10, 1 - i / 12) for i in (1, 2, 3)])
    made = draw_curves([curves(relu), curves(tanh)])
    training, validation = made.axes
    assert (training.get_title("left"), validation.get_title("left")) == ("training error", "validation error")
    lines = {line.get_label(): line for line in training.lines}
    np.testing.assert_array_equal(lines["relu"].get_ydata(), curves(relu).train_error)
    np.testing.assert_array_equal(lines[" _<i>tanh $x$"].get_ydata(), curves(tanh).train_error)
    marks = [line for line in training.lines if line.get_marker() == "v"]
    assert [list(mark.get_xdata()) for mark in marks] == [[3, 5], []]
    text = plot.encoded(made, "svg").decode()
    assert "_&lt;i&gt;tanh $x$" in text


def test_the_command(run, relu: Path, tmp_path: Path) -> None:
    other = record(tmp_path / "again" / "relu", [epoch(1, 0.1, 0.5)])
    code, out, _ = run("show", "curves", relu, other, "--out", "both.svg")
    assert (code, out) == (0, "written: both.svg\n")
    text = (tmp_path / "both.svg").read_text(encoding="utf-8")
    assert f">{tmp_path.name[:10]}" in text  # two runs of one name are told apart by their folders
    assert ">again/relu<" in text
    code, _, err = run("show", "curves", tmp_path)
    assert code == 2
    assert "no metrics.jsonl in it" in err

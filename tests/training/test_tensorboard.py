"""TensorBoard reads from a run's event file what its record has, each step once, whatever happened to the run."""

import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from convnet.data.store import Store
from convnet.errors import DiskError
from convnet.io.atomic import in_place
from convnet.recipe import load_recipe, with_settings
from convnet.training import metrics_log, tensorboard
from convnet.training.train import train

RECIPE = with_settings(load_recipe("lenet5_small"), ["epochs=3", "batch=64"])
Points = dict[str, list[tuple[int, float]]]


class Killed(BaseException):
    """Nobody catches it, as a killed process catches nothing."""


def accumulator(run: Path) -> Any:
    """TensorBoard's own reader of a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    return reader.EventAccumulator(str(run))


def points(reader: Any) -> Points:
    """(step, value) by tag; of speeds, which differ from run to run, that they are there."""
    reader.Reload()
    found = {tag: [(each.step, each.value) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    assert all(value > 0 for _, value in found["pictures_per_second"])
    return found | {"pictures_per_second": [(step, 0.0) for step, _ in found["pictures_per_second"]]}


@pytest.fixture(scope="module")
def undisturbed(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("events") / "run"
    train(RECIPE, few_digits, out, events=True)
    return out


def test_it_reads_what_the_record_has(undisturbed: Path) -> None:
    found, rows = points(accumulator(undisturbed)), metrics_log.read(undisturbed / "metrics.jsonl")
    assert len(found) == 9
    for kind, tags in tensorboard.TAGS.items():
        for name, tag in tags.items():
            known = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if row["kind"] == kind]
            assert found[tag] == known, tag
    assert [step for step, _ in found["pictures_per_second"]] == [5, 10, 15]


@pytest.mark.parametrize("row", [3, 9, 16])
def test_killed_and_resumed_it_has_each_step_once(
    undisturbed: Path, few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    """Killed while a row is written, of which the file has the beginning; one who watches reads on."""
    add, told, out = tensorboard.Events.add, [0], tmp_path / "run"

    def cut(events: tensorboard.Events, values: metrics_log.Row) -> None:
        told[0] += 1
        if told[0] == row:
            with open(events.path, "ab", opener=in_place) as file:
                file.write(b"\x18\0\0\0\0\0\0\0\1")
            raise Killed
        add(events, values)

    monkeypatch.setattr(tensorboard.Events, "add", cut)
    with pytest.raises(Killed):
        train(RECIPE, few_digits, out, events=True)
    watcher = accumulator(out)
    watcher.Reload()
    monkeypatch.undo()
    train(RECIPE, few_digits, out, resume=True, events=True)
    assert points(watcher) == points(accumulator(out)) == points(accumulator(undisturbed))
    assert [path.stat().st_size > 0 for path in sorted(out.glob(tensorboard.NAMES))] == [False, True]


def test_a_run_that_began_without_has_all_of_it_later(undisturbed: Path, few_digits: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(RECIPE, few_digits, out)
    assert not list(out.glob(tensorboard.NAMES))
    train(RECIPE, few_digits, out, resume=True, events=True)
    assert points(accumulator(out)) == points(accumulator(undisturbed))


def test_what_is_no_number_is_shown_as_such(tmp_path: Path) -> None:
    reader = accumulator(tmp_path)
    row = {"kind": "epoch", "epoch": 1, "step": 7, "lr": 0.1, "train_loss": "nan", "train_error": 1.0}
    tensorboard.Events(tmp_path, tmp_path / "timing.jsonl", [row])
    reader.Reload()
    (loss,) = reader.Scalars("loss/train")
    assert loss.step == 7
    assert loss.value != loss.value
    assert "loss/validation" not in reader.Tags()["scalars"]


def test_what_can_not_be_written_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    events = tensorboard.Events(tmp_path, tmp_path / "timing.jsonl", [])
    events.path.unlink()
    events.path.mkdir()
    with pytest.raises(DiskError, match="cannot be written"):
        events.add({"kind": "step", "step": 1, "loss": 1.0})


def test_without_the_package_nothing_begins(
    run: Run, few_digits: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, _, err = run("train", few_digits.path, "--tensorboard", "--out", "run", "-q")
    assert code == 2
    assert 'pip install "convnet-classics[tensorboard]"' in err
    assert not (tmp_path / "run").exists()

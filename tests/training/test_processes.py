"""Several processes train as one does: the order of the pictures, the weights, what is written, and what is lost."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convnet import __version__, checkpoint
from convnet.cli.launch import start
from convnet.data.store import Store
from convnet.errors import DataError, UsageError
from convnet.io.processes import ALONE, TIMEOUT, Processes, from_environment, timeout
from convnet.training import metrics_log
from convnet.training.train import train
from forked import Ended, run

TESTS = Path(__file__).parents[1]
Steps = list[tuple[int, list[int], list[int]]]  # (number, the batch's pictures, this process's)
BATCH = 314  # of 315 pictures: the second step of an epoch has one, fewer than there are processes
SAME = ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv")


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 70))
def test_parts_are_a_list_in_order(size: int, n: int, chunk: int) -> None:
    parts = [Processes(rank, n).part(size, chunk) for rank in range(n)]
    assert [i for part in parts for i in range(size)[part]] == list(range(size))
    lengths = [-(-(part.stop - part.start) // chunk) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert all(part.start % chunk == 0 for part in parts if part.start < size)


@pytest.mark.parametrize("variables", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}])
def test_ranks_that_cannot_be(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="a rank is 0 to WORLD_SIZE - 1"):
        from_environment(variables)
    assert from_environment({}) == ALONE


def test_alone_it_is_what_there_is() -> None:
    assert ALONE.together(lambda: 3) == [3]
    assert list(ALONE.agreed(iter("ab"), lambda: False)) == ["a", "b"]
    with pytest.raises(DataError, match="damaged"):
        ALONE.together(lambda: (_ for _ in ()).throw(DataError("damaged")))


def steps(out: Path, n: int) -> list[Steps]:
    """The steps of each process."""
    return [json.loads(Path(f"{out}.{rank}.json").read_text(encoding="utf-8")) for rank in range(n)]


def by_torchrun(n: int, restarts: int, arguments: Sequence[str]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "--max-restarts",
                str(restarts), "--monitor-interval", "0.1", str(TESTS / "process_driver.py")]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True,
                          timeout=600, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def forked(store: Store, jobs: Sequence[tuple[Path, int, tuple[str, ...]]], **environment: str) -> list[Ended]:
    """Each job is a run's folder, the number of its processes and what process_driver.py takes."""
    arguments = [(n, [str(store.path), str(out), *fields]) for out, n, fields in jobs]
    return run("process_driver:main", arguments, **environment)


def trained(store: Store, jobs: Sequence[tuple[Path, int, tuple[str, ...]]]) -> None:
    for ended in forked(store, jobs):
        assert not any(ended.codes), ended.stderr


def test_processes_train_as_one(few_digits: Store, tmp_path: Path) -> None:
    """50 steps with dropout and augmentation. Their sums are in another order: a few roundings of float32 a step."""
    outs = {n: tmp_path / str(n) for n in (1, 2, 3)}
    fields = ("epochs=25", f"batch={BATCH}", "lr=0.0001")
    trained(few_digits, [(out, n, fields) for n, out in outs.items()])
    expected = steps(outs[1], 1)[0]
    assert len(expected) == 50
    for n in (2, 3):
        ranks = steps(outs[n], n)
        for number, (_, ids, _) in enumerate(expected):
            those = [each[number] for each in ranks]
            assert [each[:2] for each in those] == [[number, ids]] * n, "the order is that of one process"
            assert [i for _, _, own in those for i in own] == ids, "each picture exactly once"
        assert any(not own for each in ranks for _, _, own in each), "a process without a picture was among them"
        one, other = (checkpoint.load(outs[k] / "last.ckpt") for k in (1, n))
        assert other.position.step == 50
        for name, weight in one.weights.items():
            found = other.weights[name]
            assert torch.linalg.vector_norm(found - weight) <= 1e-5 * torch.linalg.vector_norm(weight) + 1e-12, name
        assert sorted(path.name for path in outs[n].iterdir()) == sorted(path.name for path in outs[1].iterdir())
        times = [metrics_log.read(outs[k] / "timing.jsonl") for k in (1, n)]
        assert [[row["pictures"] for row in rows] for rows in times] == [[315] * 25] * 2, (
            "an epoch is written down once"
        )
        rows, expected_rows = (metrics_log.read(outs[k] / "metrics.jsonl") for k in (n, 1))
        for row, expected_row in zip(rows, expected_rows, strict=True):
            for name in {"loss", "train_loss", "val_loss"} & row.keys():
                assert row[name] == pytest.approx(expected_row[name], rel=1e-3), (row["step"], name)


def test_gradients_in_bf16(few_digits: Store, tmp_path: Path) -> None:
    """Near those in float32, and not the same; the run says so. In one process nothing is sent."""
    fields = ("epochs=1", "batch=64", "lr=0.0001")
    outs = {(n, sent): tmp_path / f"{n}{sent}" for n, sent in ((1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"))}
    trained(few_digits, [(out, n, (*fields, f"sent_gradients={sent}")) for (n, sent), out in outs.items()])
    kept = {key: checkpoint.load(out / "last.ckpt") for key, out in outs.items()}
    texts = {key: each.provenance["processes"] for key, each in kept.items()}
    assert texts[1, "bf16"] == "1"
    assert texts[2, "bf16"] == "2, gradients averaged in bf16"
    distances = {}
    for n in (1, 2):
        one, other = (kept[n, sent].weights for sent in ("fp32", "bf16"))
        norms = {name: float(torch.linalg.vector_norm(weight)) for name, weight in one.items()}
        apart = {name: float(torch.linalg.vector_norm(other[name] - one[name])) for name in one}
        distances[n] = max(apart[name] / norms[name] for name in one if norms[name])
    assert distances[1] == 0
    assert 0 < distances[2] < 1e-2, "of a gradient 2^-9 is rounded, and of the weights a tenth has been learned"


@pytest.mark.parametrize(("by", "kills"), [("its agent", 1), pytest.param("torchrun", 10, marks=pytest.mark.large)])
def test_a_lost_process_changes_nothing(by: str, kills: int, few_digits: Store, tmp_path: Path) -> None:
    """Killed in mid-epoch, all are started anew from the last saved step: bitwise the undisturbed run."""
    epochs = 2 * kills
    fields = (f"epochs={epochs}", "batch=64", "save_minutes=0.0001")
    at = sorted(random.Random(0).sample(range(1, 5 * epochs), kills))
    trained(few_digits, [(tmp_path / "whole", 2, fields)])
    lost = [str(few_digits.path), str(tmp_path / "lost"), *fields, *(f"lose={step}" for step in at)]
    if by == "torchrun":
        by_torchrun(2, kills, lost)
    else:
        (ended,) = run("process_driver:agent", [(1, ["2", str(kills), *lost])])
        assert ended.codes == [0], ended.stderr
    for name in SAME:
        assert (tmp_path / "lost" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_process_that_hangs_is_named(few_digits: Store, tmp_path: Path) -> None:
    fields = ("epochs=2", "batch=64", "hang=3")
    (ended,) = forked(few_digits, [(tmp_path / "run", 3, fields)], CONVNET_TIMEOUT="0.15")
    assert ended.codes == [1, 1, -signal.SIGKILL]
    told = [line for line in ended.stderr.splitlines() if "Unreachable: " in line]
    assert "process 2 of 3 (the first is 0) didn't answer for 0.15 minutes (CONVNET_TIMEOUT): it hangs" in told[0]
    assert ended.stderr.count("process 0 tells of it") == 1, "the others leave the telling to the first"


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_a_timeout_is_a_number_of_minutes(text: str) -> None:
    with pytest.raises(UsageError, match=f"CONVNET_TIMEOUT={text}: it must be a number of minutes above 0"):
        timeout({TIMEOUT: text})
    assert timeout({TIMEOUT: "0.5"}).total_seconds() == 30
    assert timeout({}).total_seconds() == 600


def test_the_command_ends_with_the_runs_own_error(few_digits: Store, tmp_path: Path) -> None:
    """Told once, with its exit code, and not begun again and again."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "stranger").touch()
    words = ["train", str(few_digits.path), "--processes", "2", "--quiet", "--out", str(tmp_path / "full")]
    (ended,) = run("forked:command", [(1, words)])
    assert ended.codes == [2]
    assert ended.stderr.count("is not empty (it holds 'stranger')") == 1
    assert "Traceback" not in ended.stderr


def launch(n: str, *words: str) -> None:
    sys.exit(start(int(n), words, "it was lost"))


def test_the_processes_are_those_of_the_command() -> None:
    """Real ones, which torch's agent starts as `python -m convnet`."""
    (ended,) = run("test_processes:launch", [(1, ["3", "--version"])])
    assert (ended.codes, ended.stdout) == ([0], 3 * f"convnet {__version__}\n"), ended.stderr


def test_several_processes_ask_for_a_number(few_digits: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say how many pictures go at once"):
        train("lenet5_small", few_digits, tmp_path / "run", micro_batch="auto", processes=Processes(0, 2))

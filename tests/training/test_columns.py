"""A net's columns over processes are the net in one: logits, gradients, steps, what is sent, checkpoints, layouts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_processes import trained

from columns_driver import BATCH
from conftest import Run
from convnet import checkpoint
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.io.processes import Processes
from convnet.nets import describe, list_models
from convnet.nets.column_parallel import column_of, why_not
from convnet.nets.layers import Net
from convnet.training.train import train
from forked import run as run_forked
from process_driver import LAYOUTS
from thin import shapes_of, thin_net

FIELDS = (
    "net=small_columns",
    "loss=softmax",
    "epochs=5",
    "batch=32",
    "lr=0.0003",  # a tenth of what it could learn by: roundings stay small
    "average=0.9",
    "max_filter_rms=0.1",
)


def test_which_nets_have_columns() -> None:
    """Two columns, or four; a net in one column can't be split, nor one whose first layer normalises the batch."""
    names = [name for name in list_models() if not why_not(shapes_of(name))]
    assert {shapes_of(name).columns for name in names} == {2, 4}
    assert {"alexnet", "alexnet_2012", "alexnet_4col", "alexnet_no_exchange", "alexnet_conv6"} <= {*names}
    for name, reason in {"vgg_a": "has no columns", "alexnet_bn": "has batch normalisation"}.items():
        with pytest.raises(UsageError, match=f"{name} {reason}.*these nets can be: alexnet, alexnet_2012,"):
            describe.check_parallel("columns", name, {}, 2)
    with pytest.raises(UsageError, match=r"alexnet has 2 columns, which 3 processes can't.*choose --processes 2"):
        describe.check_parallel("columns", "alexnet", {}, 3)
    with pytest.raises(UsageError, match="alexnet has 2 columns: 4 processes can't hold it"):
        column_of(describe.skeleton("alexnet"), Processes(0, 4))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "alexnet_4col", "alexnet_no_conv2", "alexnet_conv6"])
def test_each_process_has_its_share(name: str) -> None:
    """The columns' parameters are all of the net's, each once."""
    whole = sum(parameter.numel() for parameter in shapes_of(name).parameters())
    n = shapes_of(name).columns
    parts = [column_of(describe.skeleton(name), Processes(rank, n)) for rank in range(n)]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert sum(counts) == whole
    assert len(set(counts)) == 1


CASES = {
    2: ("columns:alexnet:2:float64", "columns:alexnet:1:float32", "columns:alexnet_2012:1:float32",
        "columns:alexnet_no_exchange_2012:1:float64", "columns:alexnet_no_conv2:1:float32"),
    3: ("data:vgg_a_bn:3:float64", "data:alexnet_bn:2:float64", "fully-connected:alexnet:2:float64",
        "fully-connected:alexnet_owt:2:float64", "fully-connected:vgg_a:2:float64"),
    4: ("columns:alexnet:2:float64", "columns:alexnet_4col:2:float64"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What tests/columns_driver.py found of each of CASES."""
    folder = tmp_path_factory.mktemp("cases")
    jobs = [(n, [str(folder / f"{n}.json"), *names]) for n, names in CASES.items()]
    for ended in run_forked("columns_driver:main", jobs):
        assert not any(ended.codes), ended.stderr
    texts = [(folder / f"{n}.json").read_text(encoding="utf-8") for n in CASES]
    return {case: found for text in texts for case, found in json.loads(text).items()}


def of_layout(cases: dict[str, dict[str, Any]], layout: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(the net, the dtype, what was found) of each case."""
    for case, found in cases.items():
        there, name, _, dtype = case.split(":")
        if there == layout:
            yield name, dtype, found


def test_columns_are_the_net(cases: dict[str, dict[str, Any]]) -> None:
    """With dropout; four processes are two by two, or four columns. In float64 the order of the sums leaves 1e-15 in a
    step; in float32 it leaves 1e-7, which more steps of a thin net would carry far (docs/log.md). What is sent is what
    the layer table says."""
    for name, dtype, found in of_layout(cases, "columns"):
        limit = 1e-11 if dtype == "float64" else 1e-5
        assert max(found[what] for what in ("logits", "gradients", "velocity", "weights")) < limit, (name, found)
        assert found["taken"]
        whole, own = found["parameters"]
        assert own * shapes_of(name).columns == whole
        n = shapes_of(name).columns
        if "bytes" in found:  # of one group
            assert found["bytes"] == told(thin_net(name), "columns", n), name


def test_split_layers_are_the_net(cases: dict[str, dict[str, Any]]) -> None:
    """One weird trick over three processes, which share 4 classes and 3 pictures unevenly, with dropout, in the last
    batch 2 pictures: as above, but that the loss is float32 whatever the net is. Each has a third of the units."""
    found_nets = list(of_layout(cases, "fully-connected"))
    for name, _, found in found_nets:
        assert max(found[what] for what in ("gradients", "velocity", "weights")) < 1e-5, (name, found)
        assert found["taken"]
        assert found["parameters"][1] < 0.5 * found["parameters"][0]
        assert found["bytes"] == told(thin_net(name), "fully-connected", 3), name
    assert len(found_nets) == 3


def told(net: Net, parallel: str, n: int) -> list[int]:
    """The bytes, forward and backward, that the layer table says."""
    rows = describe.exchanges(net, BATCH, parallel, n)
    return [sum(row.forward for row in rows), sum(row.backward for row in rows)]


def test_batch_norm_sees_the_whole_batch(cases: dict[str, dict[str, Any]]) -> None:
    """By sync_batch_norm three processes train a net with batch norm as one does, its running statistics too; the last
    batch has two pictures, so that one process has none. The nets are float64, their loss float32."""
    for name, _, found in of_layout(cases, "data"):
        assert found["weights"] < 1e-5, (name, found)
        assert max(found["gradients"], found["velocity"]) < 1e-4, "of nets with few values to a mean"


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


@pytest.fixture(scope="module")
def runs(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process; one in two columns; one in two that split its connected layers; and one that goes from one
    process to two that share batches, to two columns, to two with split layers and back, stopped in the middle of an
    epoch each time."""
    folder = tmp_path_factory.mktemp("runs")
    moved = [("stop=6",), ("resume", "stop=17"), ("resume", "columns", "stop=28"),
             ("resume", "fully-connected", "stop=39"), ("resume",)]  # fmt: skip
    jobs = [(folder / "alone", 1, FIELDS), *((folder / each, 2, (*FIELDS, each)) for each in LAYOUTS)]
    jobs += [(folder / "moved", n, (*FIELDS, *more)) for n, more in zip((1, 2, 2, 2, 1), moved, strict=True)]
    trained(few_digits, jobs)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_net_train_as_one(layout: str, runs: Path) -> None:
    """50 steps of a run with dropout, augmentation and validation; its checkpoints are those of one process."""
    alone, out = runs / "alone", runs / layout
    one, other = (checkpoint.load(folder / "last.ckpt") for folder in (alone, out))
    assert other.position.step == 50
    assert list(other.weights) == list(one.weights)
    assert list(other.velocity or {}) == list(one.velocity or {})
    assert one.unaveraged is not None
    assert other.unaveraged is not None
    for found, expected in ((other.weights, one.weights), (other.unaveraged, one.unaveraged)):
        for name, weight in expected.items():
            distance = torch.linalg.vector_norm(found[name] - weight)
            assert distance <= 1e-5 * torch.linalg.vector_norm(weight) + 1e-7, name
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(out)[-1] < losses(out)[0] - 0.1, "it learns"
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())


def test_a_run_moves_between_layouts(runs: Path) -> None:
    assert len(losses(runs / "moved")) == 50
    assert losses(runs / "moved") == pytest.approx(losses(runs / "alone"), abs=1e-4)


def test_columns_want_as_many_processes(few_digits: Store, tmp_path: Path, run: Run) -> None:
    with pytest.raises(UsageError, match="lenet5 has no columns"):
        train("lenet5_small", few_digits, tmp_path / "run", parallel="columns", processes=Processes(0, 2))
    for options in (["--processes", "3"], []):
        code, _, error = run("train", few_digits.path, *options, "--parallel", "columns")
        assert (code, error.count("lenet5 has no columns")) == (2, 1)


def test_which_nets_have_layers_to_split() -> None:
    names = [name for name in list_models() if not describe.why_not(shapes_of(name), "fully-connected")]
    assert {"alexnet", "alexnet_owt", "alexnet_1col", "zfnet", "vgg_a", "vgg_d_bn", "cifar_26"} <= {*names}
    for name, reason in {"googlenet": "one", "lenet5": "no", "alexnet_bn": "no", "nin_small": "no"}.items():
        with pytest.raises(UsageError, match=f"{name} has {reason} fully connected layer at its end that follows"):
            describe.check_parallel("fully-connected", name, {}, 2)
    with pytest.raises(UsageError, match="choose --processes 2 or more"):
        describe.check_parallel("fully-connected", "vgg_a", {}, 1)
    with pytest.raises(UsageError, match="--parallel rows: it must be one of data, columns, fully-connected"):
        describe.check_parallel("rows", "vgg_a", {}, 2)


def test_explain_columns(run: Run) -> None:
    """96 maps of 55 x 55 want 2 from each side, 48,400 bytes a picture and way; the rest is what two columns read."""
    code, text, _ = run("explain", "alexnet", "--parallel", "columns")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if "of all columns" in line}
    pictures = 128 * 4
    for stage, values in {"conv3": 256 * 13 * 13, "fc6": 256 * 6 * 6, "fc7": 4096, "fc8": 4096}.items():
        assert rows[stage] == [f"{values // 2 * 2 * pictures:,}"] * 2
    assert run("explain", "vgg_a", "--parallel", "columns")[0] == 2

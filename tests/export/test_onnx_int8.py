"""Nets in int8: the numbers that a file tells of itself are an independent count's, and its answers near fp32's."""

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, scores_of
from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing, of_recipe
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.views import centre
from convnet.export import export, onnx_int8
from convnet.nets import create_model
from convnet.recipe import Recipe
from exported import livelier, needs_onnx, program_once
from faults import Disk


def lenet5(classes: tuple[str, ...]) -> Checkpoint:
    net = livelier(create_model("lenet5", seed=1, output="linear"), 2)
    recipe = Recipe(name="a", net="lenet5", net_options={"output": "linear"}, size=28, pad=2, crop=32)
    done = Preprocessing(28, 2, 32, "grey", None, 1.275 / 255, -0.1)
    return Checkpoint(recipe, done, classes, net.state_dict())


def cifar_11(photos: Store) -> Checkpoint:
    net = livelier(create_model("cifar_11", num_classes=3, seed=1), 3)
    recipe = Recipe(name="a", net="cifar_11", size=32, crop=24, mean="picture")
    done = of_recipe(recipe, photos.mean_picture, None, photos.shorter_side)
    return Checkpoint(recipe, done, photos.classes, net.state_dict())


def answers(file: Path, crops: np.ndarray, name: str = "pixels") -> np.ndarray:
    """(N, K) by onnxruntime, a picture at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: crop if name == "picture" else crop[None]})[0] for crop in crops])


def crops_of(store: Store, name: str, done: Preprocessing) -> np.ndarray:
    split = store.split(name)
    view = centre(done, split.n)
    return split.crops(np.arange(split.n), view.tops, view.lefts, done.crop)


@needs_onnx
def test_what_the_command_tells_is_an_independent_count(digits: Store, run: Run, tmp_path: Path) -> None:
    import onnx

    kept = lenet5(digits.classes)
    checkpoint.save(tmp_path / "best.ckpt", kept)
    assert run("export", "best.ckpt", "fp32.onnx", "-q")[0] == 0
    code, out, err = run("export", "best.ckpt", "int8.onnx", "--int8", digits.path, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)["int8"]
    crops, labels = crops_of(digits, "test", kept.preprocessing), digits.split("test").labels
    fp32, int8 = (answers(tmp_path / f"{name}.onnx", crops) for name in ("fp32", "int8"))
    # 8 bits hold a range in steps of a 255th; through four layers such roundings move a probability by a few hundredths
    assert 0 < np.abs(fp32 - int8).max() < 0.1
    right, right_too = fp32.argmax(1) == labels, int8.argmax(1) == labels
    assert told["test"] == {
        "split": "test",
        "n": 359,
        "fp32_top1_error": 1 - right.mean(),
        "int8_top1_error": 1 - right_too.mean(),
        "points_lost": pytest.approx(100 * (right.mean() - right_too.mean())),
        "same_answer": (fp32.argmax(1) == int8.argmax(1)).mean(),
        "only_fp32_right": (right & ~right_too).sum(),
        "only_int8_right": (~right & right_too).sum(),
        "p": told["test"]["p"],
    }
    assert told["test"]["same_answer"] > 0.95
    assert told["calibration"] == {"split": "train", "n": 512, "seed": 0}
    assert (told["float_layer"], told["store_sha256"]) == ("output", digits.identity)

    model, former = (onnx.load(tmp_path / f"{name}.onnx") for name in ("int8", "fp32"))
    sides, sides_before = ([*one.graph.input, *one.graph.output] for one in (model, former))
    assert [(each.name, each.type) for each in sides] == [(each.name, each.type) for each in sides_before]
    assert model.opset_import == former.opset_import
    entries, before = ({each.key: each.value for each in each_model.metadata_props} for each_model in (model, former))
    assert json.loads(entries.pop("int8")) == told
    assert entries == before

    code, out, _ = run("export", "best.ckpt", "again.onnx", "--int8", digits.path, "-q")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "int8.onnx").read_bytes()
    assert "int8, calibrated on 512 training pictures; output stays float32\n" in out
    assert f"in fp32 {1 - right.mean():.2%} (test, n 359): " in out


@needs_onnx
def test_what_is_in_int8_and_what_in_float32(photos: Store, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto

    kept = cifar_11(photos)
    cost = export(kept, tmp_path / "a.onnx", int8=photos).int8
    assert cost is not None
    assert cost.n_calibration == 90  # all there are
    assert (cost.int8.n, cost.float_layer) == (100, "fc10")
    model = onnx.load(tmp_path / "a.onnx")
    kinds = {each.name.removeprefix("logits.net."): each for each in model.graph.initializer}
    for name, maps in (("conv1", 64), ("conv2", 64)):
        assert kinds[f"{name}.weight_quantized"].data_type == TensorProto.INT8
        assert kinds[f"{name}.weight_scale"].dims == [maps]
    assert kinds["fc10.weight"].data_type == TensorProto.FLOAT
    makers = {node.output[0]: node for node in model.graph.node}
    floats = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "Pow")]
    assert {node.op_type for node in floats} == {"Gemm", "MatMul", "Pow"}  # the last layer, locally connected ones, LRN
    for node in floats:
        assert all(
            makers[name].op_type != "DequantizeLinear" or node.op_type == "Pow" for name in node.input if name in makers
        )


@needs_onnx
def test_floats_and_whole_pictures_get_the_same_answers(
    few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_once(monkeypatch)
    kept = lenet5(few_digits.classes)
    crops = crops_of(few_digits, "test", kept.preprocessing)
    export(kept, tmp_path / "a.onnx", int8=few_digits)
    found = answers(tmp_path / "a.onnx", crops)
    export(kept, tmp_path / "floats.onnx", int8=few_digits, floats=True)
    np.testing.assert_allclose(answers(tmp_path / "floats.onnx", crops.astype(np.float32)), found, atol=1e-6)
    export(kept, tmp_path / "pictures.onnx", int8=few_digits, takes="picture")  # the store holds what the net sees
    whole = np.stack([few_digits.split("test").picture(i) for i in range(10)])
    np.testing.assert_allclose(answers(tmp_path / "pictures.onnx", whole, "picture"), found[:10], atol=1e-6)
    assert found.std(0).max() > 100 * 1e-6


def test_a_loss_above_a_tenth_of_a_point_is_a_warning(digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def cost(n_wrong: int, n_before: int = 10, n: int = 2000) -> onnx_int8.Cost:
        before, after = ((np.arange(n) < each).astype(np.int64) for each in (n_before, n_wrong))
        scores = [scores_of(digits.classes, np.zeros(n, np.int64), each, each) for each in (before, after)]
        return onnx_int8.Cost(digits, 512, *scores, "fc")

    assert cost(13).lines() == [
        "int8, calibrated on 512 training pictures; fc stays float32",
        "top-1 error 0.65%, in fp32 0.50% (test, n 2,000): +0.15 points; only fp32 is right on 3, only int8 on 0 "
        "(p 0.25); the same answer for 99.85%",
        "warning: int8 loses 0.15 points of top-1 error, more than 0.1",
    ]
    assert len(cost(5).lines()) == len(cost(12).lines()) == 2  # fewer errors; 0.1 points, also where
    assert len(cost(398, 397, 1000).lines()) == 2  # 100 (0.398 - 0.397) isn't 0.1


@needs_onnx
def test_stores_that_do_not_fit_are_named(
    digits: Store, photos: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_once(monkeypatch)
    kept = lenet5(digits.classes)

    def refused(text: str, store: Store, like: Checkpoint = kept, name: str = "a.onnx") -> None:
        with pytest.raises(UsageError, match=text):
            export(like, tmp_path / name, int8=store)
        assert not (tmp_path / name).exists()

    refused("has 3 classes that the net lacks, as 'blue', 'green', 'red'", photos)
    refused("--int8 is for .onnx; a .npz has float32 weights", digits, name="a.npz")
    source = open_source("digits")
    few = replace(source, entries=source.entries[::20])
    other = prepare(few, tmp_path / "other", size=24)
    refused("holds pictures of 24 pixels in a shorter side of 24, .* prepare the source with --size 28", other)
    only_train, only_test = Store(digits.path), Store(digits.path)
    del only_train.splits["test"], only_train.splits["val"], only_test.splits["train"]
    refused("pictures in train only; int8's loss is measured on others, in val or test", only_train)
    refused("no pictures in its split train; int8 is calibrated on training pictures", only_test)

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("no\nscale")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fails)
    with pytest.raises(ConvnetError, match=r"a.onnx: not written: onnxruntime can't say it in int8: no scale"):
        export(kept, tmp_path / "a.onnx", int8=digits)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(r'pip install "convnet-classics\[onnx\]"', digits)


@needs_onnx
def test_no_room_for_temporary_files_is_told_and_nothing_is_left(
    few_digits: Store, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_once(monkeypatch)
    checkpoint.save(tmp_path / "best.ckpt", lenet5(few_digits.classes))
    assert run("export", "best.ckpt", "fp32.onnx", "-q")[0] == 0  # torch has a folder of its own among them
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    told = "free some space, or let TMPDIR name a folder on another disk, and run the same command again"

    def check(reason: str) -> None:
        code, _, err = run("export", "best.ckpt", "int8.onnx", "--int8", few_digits.path, "-q")
        assert (code, err.count("\n"), str(place) in err) == (5, 1, True), err
        assert reason in err
        assert not (tmp_path / "int8.onnx").exists()
        assert list(place.iterdir()) == []

    with Disk(place) as disk:
        code, _, err = run("export", "best.ckpt", "whole.onnx", "--int8", few_digits.path, "-q")
    assert code == 0, err
    assert disk.changes[0].startswith("mkdir convnet-")
    folders = [at for at, change in enumerate(disk.changes, 1) if change.startswith("mkdir")]
    for at in folders:  # ours, and those of onnxruntime
        with Disk(place, "ENOSPC", at):
            check(told)
    with Disk(place, "ENOSPC", 3):  # while the file is written there
        check("disk full; free some space and run the same command again")
    full = shutil.disk_usage(place)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    check("disk full: 1 bytes are free, ")
    check(told)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(place / "none")])
    check(told)


def test_a_folder_for_a_hub_has_no_int8(run: Run, digits: Store) -> None:
    code, _, err = run("export", "best.ckpt", "folder", "--hub", "--int8", digits.path)
    assert code == 2
    assert "--hub writes weights, and chooses their names" in err

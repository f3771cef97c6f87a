"""Features on the disk: what others read of them, stopped and gone on with, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import convnet
from conftest import Run, trained_net
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import strict_json
from convnet.io.signals import Stop
from convnet.nets import create_model, model, trace
from convnet.progress import Silent
from convnet.retrieval import activations as asking
from convnet.retrieval.activations import activations, states
from convnet.retrieval.extract import FORMATS, extract
from convnet.retrieval.features import open_features
from convnet.retrieval.pictures import Pictures, of_files, of_split
from pictures import content

STAGES = ["conv2", "pool2", "relu4", "fc10"]
HOW = Preprocessing(size=32, pad=0, crop=24, channels="rgb", mean=None, scale=1 / 64, offset=-1.0, shorter_side=32)


@pytest.fixture(scope="module")
def net() -> TrainedNet:
    return trained_net(create_model("cifar_13", seed=0, num_classes=3), HOW)


@pytest.fixture
def pictures(photos: Store, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """30 of them, with classes; 8 are looked at at a time."""
    monkeypatch.setattr(asking, "BATCH", 8)
    return of_split(photos.split("val"))


class Brake(Silent):
    """Asks for a stop when half is done."""

    def __init__(self) -> None:
        self.stop = Stop()

    def update(self, done: int, **values: str) -> None:
        if done >= 16:
            self.stop.ask(15)


def expected(net: TrainedNet, pictures: Pictures) -> dict[str, np.ndarray]:
    parts = list(activations(net, pictures, STAGES))
    return {stage: np.concatenate([part.stages[stage] for part in parts]) for stage in STAGES}


def test_arrays_are_the_activations(net: TrainedNet, pictures: Pictures, photos: Store, tmp_path: Path) -> None:
    features = extract(net, "0" * 64, pictures, tmp_path / "out", STAGES)
    assert features.keys == pictures.keys
    assert np.array_equal(features.labels, photos.split("val").labels[:])
    assert features.classes == photos.classes
    assert features.stages == STAGES
    for stage, x in expected(net, pictures).items():
        assert np.array_equal(features.array(stage), x)
        assert np.array_equal(np.load(tmp_path / "out" / f"{stage}.npy"), x)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["features.json", "left_out.jsonl", "pictures.jsonl", *(f"{stage}.npy" for stage in STAGES)]
    )
    what = {stage: row["what"] for stage, row in features.meta["arrays"].items()}
    assert what == {"conv2": "before ReLU", "pool2": "after ReLU", "relu4": "after ReLU", "fc10": "logits"}


def test_hdf5_is_read_by_h5py(net: TrainedNet, pictures: Pictures, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 is read back by h5py, a package for development")
    features = extract(net, "0" * 64, pictures, tmp_path / "out", STAGES, kind="hdf5")
    with h5py.File(tmp_path / "out" / "features.h5") as file:
        assert set(file) == {*STAGES, "keys", "labels"}
        assert tuple(file["keys"].asstr()) == pictures.keys
        assert np.array_equal(file["labels"], pictures.labels)
        for stage, x in expected(net, pictures).items():
            assert file[stage].dtype == np.float32
            assert np.array_equal(file[stage], x)
            assert np.array_equal(features.array(stage), x)


def test_parquet_is_read_by_pyarrow(
    net: TrainedNet, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='needs pip install "convnet-classics[features]"')
    monkeypatch.setattr("convnet.retrieval.formats.BLOCK", 1 << 16)
    features = extract(net, "0" * 64, pictures, tmp_path / "out", STAGES, kind="parquet", dtype="float16")
    table = parquet.read_table(tmp_path / "out" / "features.parquet")
    assert parquet.ParquetFile(tmp_path / "out" / "features.parquet").num_row_groups > 1
    assert tuple(table["key"].to_pylist()) == pictures.keys
    assert np.array_equal(table["label"], pictures.labels)
    for stage, x in expected(net, pictures).items():
        rows = table[stage].combine_chunks().flatten().to_numpy().reshape(x.shape)
        assert np.array_equal(rows, x.astype(np.float16))
    with pytest.raises(UsageError, match="holds Parquet, which pyarrow reads"):
        features.array("fc10")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_stopped_extraction_goes_on_bitwise(
    kind: str, net: TrainedNet, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason='needs pip install "convnet-classics[features]"')
    extract(net, "0" * 64, pictures, tmp_path / "whole", STAGES, kind=kind)
    brake, out, firsts = Brake(), tmp_path / "out", list[int]()
    with pytest.raises(Interrupted, match="stopped after 16 of 30 pictures; the same command goes on"):
        extract(net, "0" * 64, pictures, out, STAGES, kind=kind, progress=brake, stop=brake.stop)
    for path in [*out.glob("*.part"), out / "unfinished.jsonl"]:
        with open(path, "ab") as file:
            file.write(b"torn " * 40_000)  # more than what is still to come
    with pytest.raises(UsageError, match="holds other work that is unfinished"):
        extract(net, "1" * 64, pictures, out, STAGES, kind=kind)

    class Seen(Silent):
        def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
            firsts.append(done)

    extract(net, "0" * 64, pictures, out, STAGES, kind=kind, progress=Seen())
    assert firsts == [16]
    assert content(out) == content(tmp_path / "whole")
    assert extract(net, "0" * 64, pictures, out, STAGES, kind=kind, progress=Seen()).keys == pictures.keys
    assert firsts == [16], "what is there isn't asked again"
    with pytest.raises(UsageError, match="holds other features"):
        extract(net, "0" * 64, pictures, out, STAGES[:1], kind=kind)


def test_normalised_and_halved(net: TrainedNet, pictures: Pictures, tmp_path: Path) -> None:
    features = extract(net, "0" * 64, pictures, tmp_path / "out", ["pool2"], normalize=True, dtype="float16")
    x = next(activations(net, pictures, ["pool2"])).stages["pool2"].astype(np.float64)
    length = np.sqrt((x**2).sum((1, 2, 3), keepdims=True))
    assert features.array("pool2").dtype == np.float16
    assert np.abs(features.array("pool2")[:8] - x / length).max() <= 2**-11  # half a float16 step below 1


def test_damaged_features_are_not_read(net: TrainedNet, pictures: Pictures, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(net, "0" * 64, pictures, out, ["fc10"])
    for path in out.iterdir():
        whole = path.read_bytes()
        for length in {0, len(whole) // 2, max(len(whole) - 1, 0)} - {len(whole)}:
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"out: .*extract again"):
                open_features(out)
        path.write_bytes(whole)
    whole = (out / "features.json").read_bytes()
    for shape, offset in (
        ([29, 3], 128),
        ([30, -3], 128),
        ([30, 3.0], 128),
        ([1 << 40, 3], 128),
        ([30, 1 << 40], 128),
        ([30, 3], 129),
    ):
        meta = strict_json.unseal(whole)  # of a stranger, whose sha256 is right
        meta["arrays"]["fc10"] |= {"shape": shape, "offset": offset}
        meta["n"] = 29 if shape[0] == 29 else 30
        (out / "features.json").write_bytes(strict_json.seal(meta))
        with pytest.raises(
            DataError, match=r"jsonl has 30 lines|fc10 is said to have the shape|fc10 does not lie within"
        ):
            open_features(out)
    (out / "features.json").write_bytes(whole)
    (out / "fc10.npy").unlink()
    with pytest.raises(DataError, match=r"fc10.npy can't be read: No such file"):
        open_features(out)


def test_pictures_that_can_not_be_read_are_left_out(
    untrained: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(asking, "BATCH", 2)
    (tmp_path / "in").mkdir()
    for i in range(5):
        Image.fromarray(np.full((28, 28), 50 * i, np.uint8)).save(tmp_path / "in" / f"{i}.png")
    for i in (2, 3):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (tmp_path / "in" / "notes.txt").write_text("of the session", encoding="utf-8")
    code, said, warned = run("extract", untrained, "in", "--out", "out")
    assert (code, said.splitlines()[0]) == (0, "out: 3 pictures")
    assert "2.png: " in warned
    features = open_features("out")
    assert features.keys == ("0.png", "1.png", "4.png")
    assert features.labels is None
    left = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_bytes().splitlines()]
    known = [("skipped", "notes.txt"), ("failed", "2.png"), ("failed", "3.png")]
    assert [(row["status"], row["key"]) for row in left] == known
    net = convnet.load(untrained, device="cpu")
    larger = extract(net, "0" * 64, of_files([tmp_path / "in" / "0.png"]), tmp_path / "larger", ["c1"], scales="40")
    (part,) = activations(net, of_files([tmp_path / "in" / "0.png"]), ["c1"], scales="40")
    assert np.array_equal(larger.array("c1"), part.stages["c1"])
    assert larger.meta["asked"]["views"] == "single at 40"
    for i in (0, 1, 4):
        (tmp_path / "in" / f"{i}.png").unlink()
    code, _, warned = run("extract", untrained, "in", "--out", "other")
    assert (code, "none of the 2 pictures could be read" in warned) == (3, True)


def test_what_is_wrong_is_said(net: TrainedNet, pictures: Pictures, tmp_path: Path, run: Run) -> None:
    def refused(error: type[Exception], match: str, **options: object) -> None:
        with pytest.raises(error, match=match):
            extract(net, "0" * 64, pictures, tmp_path / "out", ["fc10"], **options)

    refused(UsageError, "unknown format 'npz'", kind="npz")
    refused(UsageError, "unknown type 'float64'", dtype="float64")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fc10.npy").write_bytes(b"mine")
    refused(UsageError, "holds fc10.npy already; choose another folder")
    assert (tmp_path / "out" / "fc10.npy").read_bytes() == b"mine"
    loud = trained_net(create_model("cifar_13", seed=0, num_classes=3), HOW)
    with torch.no_grad():
        loud.net.get_parameter("fc10.bias").fill_(1e5)
    with pytest.raises(DataError, match="is beyond float16's 65,504; choose float32, or another stage"):
        extract(loud, "0" * 64, pictures, tmp_path / "loud", ["fc10"], dtype="float16")
    with pytest.raises(UsageError, match="holds no features"):
        open_features(tmp_path / "out")


WORDS = {  # the first letter of each stage's word: before or after the ReLU, input, logits
    "alexnet_2012": "bbba baaaa ba ba baa ba ba l",
    "alexnet_bn": "i bbaa bbaa bba bba bbaa bba bba l",
    "cifar_26": "bba baa baa ba l",
    "googlenet": "aaa aaaa aaa alaaal aa aaa l",
    "lenet5": "aaaaaa l",
    "nin_small": "aaaaaa l",
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words_for_stages(name: str) -> None:
    with torch.device("meta"):
        net = model(name)()
        stages = trace(net, torch.empty(1, net.in_channels, net.input_size, net.input_size))
    told = states(net, stages)
    assert list(told) == list(stages)
    assert "".join(word[0] for word in told.values()) == WORDS[name].replace(" ", ""), told
    assert ("after tanh" in told.values(), "after ReLU" in told.values()) == (name == "lenet5", name != "lenet5")

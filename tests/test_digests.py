"""Every file that convnet writes and reads again: one flipped bit is an error that names it, or is made good.

    file                                            what a flipped bit is                        test
    last.ckpt, last.previous.ckpt, best.ckpt        an error; a resumed run takes the other one  checkpoint
    metrics.jsonl, timing.jsonl                     an error; a resumed run repairs them         rows
    environment.json, summary.json                  an error; a resumed run writes them anew     sealed
    recipe.toml                                     the checkpoint's is taken instead            recipe
    FILE of --posteriors                            an error                                     posteriors
    features.json, arrays, lists of pictures        an error                                     features
    unfinished.jsonl and the parts beside it        asked again                                  unfinished features
    FILE.part                                       asked again                                  unfinished posteriors
    a store's store.json, index, keys, mean, shards an error                                     store
    .work of a killed preparation, its shards       made anew                                    unfinished store
    .work/source.tar                                unpacked anew                                unpacked tar
    published weights, FILE.sha256                  an error; a part is thrown away              download
    INDEX of convnet index                          an error                                     index
    an exported .safetensors and its mean picture   an error                                     export
    the compiled library in the cache               compiled anew                                library
    what the cache holds of a store behind a URL    fetched anew                                 cached records

`READ` says for every file of the package that writes which of these it writes, or why nobody reads it again.
"""

import ast
import gzip
import hashlib
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convnet
from conftest import trained_net
from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.cli.resolve import resume_run
from convnet.data import prepare as preparing
from convnet.data import preprocess
from convnet.data.check import check_store
from convnet.data.decode import BadPicture
from convnet.data.prepare import prepare
from convnet.data.sources import Entry, Source, open_source
from convnet.data.store import Store
from convnet.errors import ConvnetError, DataError, Interrupted
from convnet.evaluation.ensemble import rows
from convnet.evaluation.predictions import Member, ask, load
from convnet.evaluation.views import protocol
from convnet.export import export
from convnet.io import cache, remote, strict_json
from convnet.io.signals import Stop
from convnet.kernels.cpu import compiled
from convnet.nets import create_model
from convnet.nets.layers import Net, record
from convnet.nets.published import Known
from convnet.progress import SILENT, Silent
from convnet.recipe import load_recipe, to_toml
from convnet.retrieval import activations, codes
from convnet.retrieval import index as retrieval
from convnet.retrieval.extract import extract
from convnet.retrieval.features import Features, open_features
from convnet.retrieval.index import Contents, write
from convnet.retrieval.pictures import of_split
from convnet.retrieval.search import search
from convnet.training import metrics_log
from convnet.weights import download, read_weights
from convnet.weights.download import fetch
from pictures import content, write_photos
from web import serving

READ = {
    "evaluation/prediction_records.py": "unfinished posteriors",
    "evaluation/predictions.py": "posteriors",
    "retrieval/extract.py": "features",
    "retrieval/formats.py": "features",
    "retrieval/unfinished.py": "unfinished features",
    "checkpoint.py": "checkpoint",
    "export/caffe.py": "for other programs, in their formats",
    "export/named.py": "export; .npz (which has CRCs) and lists of classes are for other programs",
    "export/page.py": "a page for people",
    "export/onnx.py": "for other programs, in their formats",
    "export/onnx_int8.py": "its own, in a folder that vanishes",
    "cli/show_data.py": "tables for people",
    "cli/launch.py": "a recipe and an exit code, between the processes of one command",
    "kernels/cpu/compiled.py": "library",
    "visualize/plot.py": "pictures for people",
    "data/prepare.py": "store, unfinished store",
    "report/__init__.py": "a page for people",
    "report/sheet.py": "a page for people",
    "retrieval/index.py": "index",
    "training/run.py": "recipe, sealed, rows; diverged.json is for people",
    "training/memory_layout.py": "sealed",
    "training/metrics_log.py": "rows; metrics.csv is for people",
    "data/sources/tars.py": "unpacked tar",
    "data/store.py": "store",
    "io/cache.py": "cached records",
    "training/tensorboard.py": "for TensorBoard, in its format, which has CRCs",
    "training/train.py": "sealed",
    "training/series.py": "sealed",
    "results/plan.py": "sealed",
    "results/reproduce.py": "sealed",
    "results/table.py": "sealed; results.csv is for programs",
    "results/shown.py": "a page for people",
    "data/preparation/unfinished.py": "unfinished store",
    "data/preparation/commit.py": "store",
    "weights/download.py": "download",
}
WRITES = {"write_atomic", "atomic", "in_place"}
OTHER_WRITES = {"write_bytes", "write_text", "tofile"}
CPU = device.choose("fp32", "cpu")
SIZE = 8

Use = Callable[[Path], object]  # reads a folder's files as the product does; what it gives is compared


def test_every_file_that_writes_is_in_the_table() -> None:
    package, found = Path(convnet.__file__).parent, set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", None))
            assert name not in OTHER_WRITES or not isinstance(node, ast.Attribute) or name == "savez", path
            if name in WRITES and (
                isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and name != "atomic")
            ):
                found.add(path.relative_to(package).as_posix())
    assert found - {"io/atomic.py"} == set(READ)
    tested = {line[97:] for line in (__doc__ or "").splitlines() if line.startswith("    ")}
    assert tested == {"test", *KINDS}


# what is made, and how it is read


def source() -> Source:
    """20 pictures in 2 classes, one of them unreadable."""
    entries = [
        Entry(f"{part}/{i}", part, i % 2, i, str(i)) for part, n in (("train", 12), ("val", 8)) for i in range(n)
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)

    def read(entry: Entry) -> np.ndarray:
        if entry.key == "val/7":
            raise BadPicture("torn")
        return pixels[entry.place]

    return Source("noise", "noise", ("a", "b"), entries, (), (), SIZE, (), read)


class Brake(Silent):
    """Stops when half is done."""

    def update(self, done: int, **values: str) -> None:
        if done >= 10:
            raise KeyboardInterrupt


def use_of_store(folder: Path) -> Use:
    prepare(source(), folder / "store", size=SIZE)

    def use(folder: Path) -> None:
        problems = [problem.text for problem in check_store(folder / "store").problems]
        if problems:
            raise DataError("; ".join(problems))

    return use


def use_of_unfinished_store(folder: Path) -> Use:
    with pytest.raises(KeyboardInterrupt):
        prepare(source(), folder / "store", size=SIZE, progress=Brake(), workers=1)
    assert len(list(folder.glob("store/.work/*.part"))) >= 2

    def use(folder: Path) -> object:
        prepare(source(), folder / "store", size=SIZE, workers=1)
        return content(folder / "store")

    return use


def use_of_unpacked_tar(folder: Path) -> Use:
    write_photos(folder / "in", {"train/a": 2, "val/a": 1})
    with tarfile.open(folder / "plain.tar", "w") as tar:
        tar.add(folder / "in", "in")
    outside = folder.parent / "set.tar.gz"
    outside.write_bytes(gzip.compress((folder / "plain.tar").read_bytes(), 1))
    shutil.rmtree(folder / "in")
    (folder / "plain.tar").unlink()
    open_source(outside, work=folder / ".work")

    def use(folder: Path) -> object:
        status = outside.stat()
        os.utime(folder / ".work" / "source.tar", ns=(status.st_mtime_ns, status.st_mtime_ns))
        opened = open_source(outside, work=folder / ".work")
        return [(entry.key, bytes(opened.read(entry))) for entry in opened.entries]

    return use


class Mean(Net):
    """A net of few weights, which asks for a stop at its second batch of pictures."""

    name, in_channels = "mean", 3

    def __init__(self, stop: Stop | None = None) -> None:
        super().__init__()
        self.layer, self.stop, self.n = nn.Linear(3, 2, bias=False), stop, 0
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.1, 0.2, -0.3], [-0.2, 0.1, 0.1]]))

    def forward(self, images: torch.Tensor, stages: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        self.n += len(images)
        if self.stop is not None and self.n > 4:
            self.stop.ask(15)
        return record(stages, "last", self.layer(record(stages, "mean", images.mean((2, 3)))))


def answered(store: Store, file: Path, stop: Stop | None = None) -> None:
    recipe = replace(load_recipe("cifar_26"), size=SIZE, crop=SIZE, mean="rgb")
    done = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb)
    member = Member("net", "sha", trained_net(Mean(stop), done), (protocol("single", done),))
    ask([member], store.split("val"), file=file, stop=stop)


def use_of_posteriors(folder: Path) -> Use:
    answered(prepare(source(), folder.parent / "store", size=SIZE), folder / "a")
    return lambda folder: rows(load(folder / "a"))[-1].scores.to_dict()


def use_of_unfinished_posteriors(folder: Path) -> Use:
    store = prepare(source(), folder.parent / "store", size=SIZE)
    with pytest.raises(Interrupted):
        answered(store, folder / "a", Stop())
    assert (folder / "a.part").stat().st_size > 65

    def use(folder: Path) -> object:
        answered(store, folder / "a")
        return content(folder)

    return use


def extracted(folder: Path, net: Mean, kind: str = "npy", stop: Stop | None = None) -> Features:
    store = prepare(source(), folder.parent / "store", size=SIZE)
    done = preprocess.of_recipe(replace(load_recipe("cifar_26"), size=SIZE, crop=SIZE, mean="rgb"), None, np.zeros(3))
    pictures = of_split(store.split("val"))
    return extract(trained_net(net, done), "sha", pictures, folder / "out", ["mean"], kind=kind, stop=stop)


def use_of_features(folder: Path) -> Use:
    extracted(folder, Mean())

    def use(folder: Path) -> object:
        features = open_features(folder / "out")
        return features.keys, features.labels.tolist(), features.array("mean").tolist()

    return use


def use_of_unfinished_features(folder: Path) -> Use:
    with pytest.raises(Interrupted):
        extracted(folder, Mean(stop := Stop()), stop=stop)
    assert (folder / "out" / "mean.npy.part").stat().st_size > 128

    def use(folder: Path) -> object:
        extracted(folder, Mean())
        return content(folder)

    return use


def kept() -> Checkpoint:
    recipe = load_recipe("lenet5_small")
    done = preprocess.of_recipe(recipe, np.zeros((28, 28, 3), np.float32), np.zeros(3))
    return Checkpoint(recipe, done, ("a", "b"), {"weight": torch.arange(12.0).reshape(3, 4)}, provenance={"store": "s"})


def use_of_checkpoint(folder: Path) -> Use:
    checkpoint.save(folder / "best.ckpt", kept())
    return lambda folder: checkpoint.load(folder / "best.ckpt").weights["weight"].tolist()


def use_of_recipe(folder: Path) -> Use:
    """Its last.ckpt stands beside."""
    store = prepare(source(), folder.parent / "store", size=SIZE)
    whole = replace(kept(), provenance={"store": str(store.path)})
    beside = folder.parent / "last.ckpt"
    checkpoint.save(beside, whole)
    (folder / "recipe.toml").write_text(to_toml(whole.recipe), encoding="utf-8")

    def use(folder: Path) -> object:
        shutil.copy(beside, folder / "last.ckpt")
        return resume_run(None, folder, [], SILENT)[1]

    return use


def use_of_rows(folder: Path) -> Use:
    for i in range(5):
        metrics_log.append(folder / "metrics.jsonl", {"step": i, "loss": 1 / (i + 1), "kind": "train"})
    return lambda folder: metrics_log.read(folder / "metrics.jsonl")


def use_of_sealed(folder: Path) -> Use:
    (folder / "summary.json").write_bytes(strict_json.seal({"net": "lenet5", "errors": [0.5, None], "sha": "0" * 64}))

    def use(folder: Path) -> object:
        try:
            return strict_json.unseal((folder / "summary.json").read_bytes())
        except ValueError as error:  # whoever reads it names the file
            raise DataError(f"{folder}: {error}") from error

    return use


def use_of_export(folder: Path) -> Use:
    recipe = replace(load_recipe("lenet5_small"), net_options={})
    mean = np.random.default_rng(0).uniform(0, 255, (28, 28, 1)).repeat(3, 2).astype(np.float32)
    done = preprocess.of_recipe(replace(recipe, mean="picture"), mean, mean.mean((0, 1)))
    weights = create_model("lenet5", seed=0).state_dict()
    export(Checkpoint(recipe, done, tuple("0123456789"), weights), folder / "a.safetensors")
    assert (folder / "a.safetensors.mean.npy").exists()
    return lambda folder: read_weights(folder / "a.safetensors")[0].preprocessing.mean.tolist()


DATA = bytes(range(256)) * 3
PUBLISHED = Known("vgg_d", "http://127.0.0.1:1/published", f"sha256:{hashlib.sha256(DATA).hexdigest()[:8]}")
UNPUBLISHED = Known("vgg_d", "http://127.0.0.1:1/unpublished", "")


def use_of_download(folder: Path) -> Use:
    """Two that have come, and a part to which nothing is missing."""

    def come(file: Known, part: Path, *_: object) -> None:
        if not part.exists():
            part.write_bytes(DATA)

    coming = replace(PUBLISHED, address="http://127.0.0.1:1/coming")

    def use(folder: Path) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "_download", come)
            return [fetch(file, folder).read_bytes() for file in (PUBLISHED, UNPUBLISHED, coming)]

    use(folder)
    (folder / "coming").rename(folder / ".coming.part")
    return use


def use_of_library(folder: Path) -> Use:
    """A compiler stands in that gives the right library at once."""
    if not (cc := compiled.compiler()):
        pytest.skip("there is no C compiler")
    outside = folder.parent
    (outside / "one.c").write_text("int one(void) { return 1; }\n")
    compiled.subprocess.run([*cc, "-shared", "-fPIC", outside / "one.c", "-o", outside / "one.so"], check=True)
    fake = outside / "cc"
    fake.write_text(f'#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && cp {outside / "one.so"} "$2"; shift; done\n')
    fake.chmod(0o755)
    (folder / "convnet").mkdir(mode=0o700)

    def use(folder: Path) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            (folder / "convnet").chmod(0o700)
            return compiled._loaded([str(fake)]).one(), content(folder)

    use(folder)
    return use


def use_of_cached_records(folder: Path) -> Use:
    """Of a store that a server gives; its records and its small files."""
    pytest.importorskip("obstore", reason="reading from URLs needs obstore, an optional dependency")
    origin = folder.parent / "web"
    prepare(source(), origin / "store", size=SIZE)

    def use(folder: Path) -> object:
        with serving(origin) as web, pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "own_folder", lambda: (folder, ""))
            store = Store(f"{web.url}/store")
            return [store.mean_picture.tolist(), [store.split("val").square(i).tolist() for i in range(7)]]

    use(folder)
    (folder / "stores" / cache.SIZE).unlink()  # which says only how much there is
    return use


def use_of_index(folder: Path) -> Use:
    """Of pictures with codes; three to a block of features."""
    features = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float16)
    contents = Contents("net.ckpt", "0" * 64, "f6", 5, tuple("abcdefgh"), ("x", "y"), "lsh")
    coder = codes.fit("lsh", features, 16)
    write(folder / "a.index", contents, np.arange(8) % 2, features.__getitem__, coder, coder.encode(features))

    def use(folder: Path) -> object:
        index = retrieval.load(folder / "a.index")
        return [search(index, features.astype(np.float32), 3, by)[0].tolist() for by in ("features", "codes")]

    return use


KINDS: dict[str, Callable[[Path], Use]] = {
    "checkpoint": use_of_checkpoint,
    "rows": use_of_rows,
    "sealed": use_of_sealed,
    "recipe": use_of_recipe,
    "posteriors": use_of_posteriors,
    "features": use_of_features,
    "unfinished features": use_of_unfinished_features,
    "unfinished posteriors": use_of_unfinished_posteriors,
    "store": use_of_store,
    "unfinished store": use_of_unfinished_store,
    "unpacked tar": use_of_unpacked_tar,
    "download": use_of_download,
    "export": use_of_export,
    "index": use_of_index,
    "library": use_of_library,
    "cached records": use_of_cached_records,
}
MADE_GOOD = {
    "recipe",
    "unfinished posteriors",
    "unfinished features",
    "unfinished store",
    "unpacked tar",
    "library",
    "cached records",
}


def check_flips(kind: str, tmp_path: Path, n_of_kind: int, n_of_file: int = 0) -> None:
    """Flipped bits in each of a kind's files: an error that names the file's place, or the right result."""
    whole = tmp_path / "whole" / "kept"
    whole.mkdir(parents=True)
    use = KINDS[kind](whole)
    paths = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    n_flips = max(n_of_kind, n_of_file * len(paths))
    shutil.copytree(whole, tmp_path / "right")
    right, generator, refused, same = use(tmp_path / "right"), random.Random(0), 0, 0
    for number in range(n_flips):
        place = tmp_path / "flipped"
        shutil.copytree(whole, place)
        path = paths[number % len(paths)]
        data = bytearray((place / path).read_bytes())
        bit = generator.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        (place / path).write_bytes(data)
        try:
            assert use(place) == right, f"bit {bit} of {path} passes in silence"
            same += 1
        except ConvnetError as error:
            assert str(place) in str(error) or "thrown away" in str(error), error
            refused += 1
        shutil.rmtree(place)
    assert (same if kind in MADE_GOOD else refused) == n_flips
    print(f"{kind}: {n_flips} bits in {len(paths)} files, {refused} refused, {same} made good, 0 in silence")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 pictures to a shard, and to a block of posteriors; what reaches the disk when is not in question."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(activations, "BATCH", 4)
    monkeypatch.setattr(preparing, "SHARD_BYTES", 4 * (3 * SIZE**2 + 128 + 3 * 512))
    monkeypatch.setattr(retrieval, "BLOCK", 30)
    for module in ("predictions", "prediction_records", "pictures"):
        monkeypatch.setattr(f"convnet.evaluation.{module}.PICTURES", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_passes_in_silence(kind: str, tmp_path: Path) -> None:
    check_flips(kind, tmp_path, 50 if kind == "unfinished store" else 100)


@pytest.mark.large
@pytest.mark.parametrize("kind", KINDS)
def test_none_of_a_thousand_flipped_bits_of_each_file_passes_in_silence(kind: str, tmp_path: Path) -> None:
    check_flips(kind, tmp_path, 0, 1000)

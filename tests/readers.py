"""The readers of files that may come from strangers, one table: where from, what stands beside, how each is read.

Where a digest would refuse every change at once, `write` makes it right again, as a stranger can: so that what lies
behind it is reached.
"""

import argparse
import gzip
import hashlib
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_sources_archives import CLASSES, sample, zip_of
from test_sources_ilsvrc import KIT, class_folders, flat, meta, truth_text, write
from test_sources_sets import picture, tar_bytes, write_cifar10, write_idx

import caffe_writer
from convnet import checkpoint
from convnet.data import preprocess
from convnet.data.check import check_store
from convnet.data.decode import BadPicture
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import DataError
from convnet.evaluation import pictures, predictions
from convnet.evaluation.ensemble import rows
from convnet.evaluation.views import Look
from convnet.export import export
from convnet.io import safetensors as tensors
from convnet.nets import create_model
from convnet.recipe import load_recipe, to_toml
from convnet.report import record
from convnet.visualize.curves import curves
from convnet.visualize.labels import class_names
from convnet.weights import read_state_dicts as tensors_in
from convnet.weights import read_weights
from convnet.weights.preprocessing import classes_of, mean_of
from convnet.weights.report import Report
from pictures import encoded, photo
from test_checkpoint import PLAIN, forged, parts, small
from test_digests import answered, source


@dataclass(frozen=True)
class Reader:
    """make(folder) writes what stands beside and returns the bytes; write, read and pixels are given the file's path.

    pixels: bytes of memory that a picture's pixels may take.
    """

    name: str
    make: Callable[[Path], bytes]
    read: Callable[[Path], object]
    write: Callable[[Path, bytes], object] = Path.write_bytes
    pixels: Callable[[Path], int] = lambda _: 0


# weights

RNG = np.random.default_rng(0)
LAYERS = {"conv1": [RNG.normal(size=(2, 2, 5, 5)), RNG.normal(size=2)], "fc": [RNG.normal(size=(2, 6)), np.ones(2)]}
WEIGHTS = {"conv1.weight": torch.ones(2, 3, 3, 3), "conv1.bias": torch.zeros(2)}


def imported(path: Path) -> None:
    """Every tensor, as `convnet import` takes them."""
    for part in tensors_in(path):
        for each in part.tensors:
            each.read()


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def of_torch(is_zip: bool) -> bytes:
    content = {"state_dict": WEIGHTS, "args": argparse.Namespace(a=1), "epoch": 3}
    return saved(lambda file: torch.save(content, file, _use_new_zipfile_serialization=is_zip))


def program(_: Path) -> bytes:
    """The pickle in a .pth, without the digest of its zip."""
    with zipfile.ZipFile(io.BytesIO(of_torch(True))) as archive:
        return archive.read("archive/data.pkl")


def with_storages(path: Path, data: bytes) -> None:
    """A .pth of that pickle, with the digests of a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": data, "data/0": bytes(216), "data/1": bytes(8)}.items():
            archive.writestr(f"archive/{name}", content)


def exported(folder: Path) -> bytes:
    """The header of a .safetensors that convnet wrote, without a sha256; its tensors stand beside."""
    recipe = load_recipe("lenet5_small")
    done = preprocess.of_recipe(recipe, np.zeros((28, 28, 3), np.float32), np.zeros(3))
    weights = create_model("lenet5", seed=0, **recipe.net_options).state_dict()
    export(checkpoint.Checkpoint(recipe, done, tuple("0123456789"), weights), folder / "a.safetensors")
    data = (folder / "a.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    del header["__metadata__"]["sha256"]
    (folder / "tensors").write_bytes(data[end:])
    return json.dumps(header).encode()


def with_tensors(path: Path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + path.with_name("tensors").read_bytes())


def safetensors(_: Path) -> bytes:
    return b"".join(map(bytes, tensors.pieces(WEIGHTS, {"format": "pt"})))


# checkpoints


def of_net(folder: Path) -> bytes:
    """The header of a net's checkpoint; what follows it stands beside."""
    recipe = load_recipe("lenet5_small")
    done = preprocess.of_recipe(recipe, np.zeros((28, 28, 3), np.float32), np.zeros(3))
    weights = dict(create_model("lenet5", seed=0, **recipe.net_options).state_dict())
    checkpoint.save(folder / "whole", checkpoint.Checkpoint(recipe, done, tuple("0123456789"), weights))
    header, rest = parts((folder / "whole").read_bytes())
    (folder / "rest").write_bytes(rest)
    return json.dumps(header).encode()


def saved_small(folder: Path, **changes: object) -> bytes:
    checkpoint.save(folder / "whole", small(**changes))
    return (folder / "whole").read_bytes()


def tensors_of(folder: Path) -> bytes:
    return parts(saved_small(folder, velocity=None, record=None, preprocessing=PLAIN))[1]


def with_header(path: Path, rest: bytes) -> None:
    """A checkpoint whose one section is `rest`, and whose every sha256 is right."""
    header, _ = parts(path.with_name("whole").read_bytes())
    section = {"name": "weights", "length": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}
    header["sections"], header["preprocessing"]["mean"] = [section], False
    path.write_bytes(forged(header, rest))


# sources


def opened(path: Path, split: float = 0.1) -> None:
    """All that a source is asked: its listing, and each picture."""
    found = open_source(path, work=path.parent / "work", split=split)
    for entry in found.entries:
        with suppress(BadPicture):
            found.read(entry)


def folder_opened(path: Path) -> None:
    opened(path.parent)


def of_idx(what: str, end: str, folder: Path) -> bytes:
    write_idx(folder, "", RNG.integers(0, 256, (3, 4, 4), np.uint8), [0, 1, 2], end)
    return (folder / f"train-{what}-ubyte{end}").read_bytes()


def of_mapping(folder: Path) -> bytes:
    write_idx(folder, "emnist-letters-", np.zeros((3, 28, 28), np.uint8), [1, 2, 3])
    return b"".join(b"%d %d %d\n" % (n, 64 + n, 96 + n) for n in range(1, 27))


def of_cifar(protocol: int | None, name: str, folder: Path) -> bytes:
    write_cifar10(folder / "set", protocol)
    return (folder / "set" / name).read_bytes()


def of_ilsvrc(name: str, folder: Path) -> bytes:
    write(folder, class_folders("train") | {f"val/{key}": data for key, data in flat("val").items()})
    inside = {"ILSVRC2010_validation_ground_truth.txt": truth_text("val"), "meta.mat": meta(compressed="z" in name)}
    kit = tar_bytes({f"devkit-1.0/data/{key}": data for key, data in inside.items()})
    if name in inside:
        write(folder, inside)
    return {**inside, "z": inside["meta.mat"], "kit": kit}[name]


def of_list(header: str, folder: Path) -> bytes:
    names = [f"{n}.jpg" for n in range(12)]
    write(folder, {name: picture(n) for n, name in enumerate(names)})
    return (header + "".join(f"{name},{'cat' if n % 2 else 'dog'}\n" for n, name in enumerate(names))).encode()


def of_arrays(_: Path) -> bytes:
    array = saved(lambda file: np.save(file, np.zeros((4, 4, 3), np.uint8)))
    return tar_bytes({f"{n}.{end}": data for n in range(3) for end, data in (("npy", array), ("cls", b"%d" % n))})


def with_sums(path: Path, data: bytes) -> None:
    """A tar with the checksum of each header made right."""
    tar = bytearray(data)
    for block in range(0, len(tar) - 511, 512):
        if tar[block + 257 : block + 262] == b"ustar":
            tar[block + 148 : block + 156] = b" " * 8
            tar[block + 148 : block + 156] = b"%06o\0 " % sum(tar[block : block + 512])
    path.write_bytes(tar)


def packed_with_gzip(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 1))


# stores


def of_store(name: str, folder: Path) -> bytes:
    made = prepare(source(), folder / "store", size=8)
    return json.dumps(made.header).encode() if name == "store.json" else (made.path / name).read_bytes()


def read_store(path: Path) -> None:
    check_store(path.parent)  # damage is in its report
    opened = Store(path.parent)
    for split in opened.splits.values():
        assert len(split.keys) == split.n
        for i in range(split.n):
            split.picture(i)
    assert opened.mean_picture.shape == (8, 8, 3)


def read_left_out(path: Path) -> None:
    told = record.Record(path, store=Store(path.parent))
    record.left_out(told)
    if told.missing:
        raise DataError(told.missing[0])


def sealed(path: Path, body: bytes) -> None:
    path.write_bytes(b'{"sha256": "%s",\n"store": %s}\n' % (hashlib.sha256(body).hexdigest().encode(), body))


def listed(path: Path, data: bytes) -> None:
    """A file of a store whose header knows its new sha256."""
    path.write_bytes(data)
    head = path.with_name("store.json")
    header = json.loads(head.read_bytes())["store"]
    header["files"][path.name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sealed(head, json.dumps(header).encode())


# runs


def of_run(name: str, folder: Path) -> bytes:
    """What a run says of itself, without digests, as earlier versions wrote it."""
    scores = {"n": 30, "top1_error": 0.5, "top5_error": 0.1, "loss": 1.0}
    speed = {"steps": 3, "training_seconds": 2.0, "pictures_per_second": 9.0}
    summary = {"net": "lenet5", "parameters": 60_000, "epochs": 2, "best_epoch": 1, "test": scores, **speed}
    epochs = [{"kind": "epoch", "epoch": n, "lr": 0.1, "train_loss": 1 / n, "train_error": 0.5} for n in (1, 2, 3)]
    return {
        "metrics.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in epochs),
        "summary.json": json.dumps(summary).encode(),
        "environment.json": json.dumps({"store": str(folder), "device": "cpu", "threads": 1, "torch": "2"}).encode(),
        "recipe.toml": to_toml(load_recipe("lenet5_small")).encode(),
    }[name]


def read_run(path: Path) -> None:
    """What the report's page is made of; damage is named there."""
    told = record.read(path.parent)
    for tell in (record.figures, record.facts, record.choices):
        told.attempt(tell.__name__, partial(tell, told))
    if len(told.missing) > 5:  # a folder of one file lacks four others and the pictures
        raise DataError("; ".join(told.missing))


def of_posteriors(folder: Path) -> bytes:
    """A file of an earlier version, without sha256."""
    answered(prepare(source(), folder / "store", size=8), folder / "whole")
    found = tensors.parse(torch.frombuffer(bytearray((folder / "whole").read_bytes()), dtype=torch.uint8))
    content = {name: tensor for name, tensor in found.items() if name != predictions.DIGESTS}
    return b"".join(map(bytes, tensors.pieces(content, {"format": predictions.FORMAT})))


# pictures and names


def of_picture(kind: str, options: dict[str, object], _: Path) -> bytes:
    return encoded(photo(1), kind, **options)


def read_picture(path: Path) -> None:
    """As `convnet predict` does."""
    pictures.read_picture(path, (Look("single", 16),), "crop")


# Of each format: bytes of memory a pixel (docs/pictures.md), and pixels that a byte can stand for at most: PNG 1,032
# bytes of eight; JPEG eight blocks; lossy WebP eight blocks of 256; LZW 2,560. Of GIF's screen, of BMP's runs, of
# lossless or animated WebP and of Zstandard any number.
ROOM = {"PNG": (9, 8 * 1032), "JPEG": (8, 512), "WEBP": (16, 2048), "GIF": (5, None), "BMP": (4, None), "PPM": (4, 8),
        "TIFF": (17, 8 * 2560)}  # fmt: skip


def room(path: Path) -> int:
    """Bytes for the pixels that a picture's header states, as far as its own bytes can hold so many."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            width, height = picture.size
            each, most = ROOM[str(picture.format)]
    except Exception:  # Pillow raises what it stumbles over
        return 0
    n_pixels = width * height if most is None else min(width * height, most * path.stat().st_size)
    return each * n_pixels


def with_crcs(path: Path, data: bytes) -> None:
    """A PNG with the CRC of each chunk made right."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end])) if end + 4 <= len(out) else b""
        at = end + 4
    path.write_bytes(out)


PICTURES: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("JPEG", {}),
    "JPEG, progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, JPEG": ("TIFF", {"compression": "jpeg"}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "PPM": ("PPM", {}),
}
WNIDS = ("n01440764", "n01443537", "n01484850")
SYNSETS = b"n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\n"
GZ, MEAN = ".gz", partial(mean_of, size=4)

READERS = {
    "caffemodel, V1": Reader("a.caffemodel", lambda _: caffe_writer.net(LAYERS, 1), imported),
    "caffemodel, V2": Reader("a.caffemodel", lambda _: caffe_writer.net(LAYERS, 2, double=True, legacy=True),
                             imported),
    "caffemodel, double": Reader("a.caffemodel", lambda _: caffe_writer.net(LAYERS, 2, double=True),
                                 imported),
    "binaryproto": Reader("a.binaryproto", lambda _: caffe_writer.blob(np.ones((1, 3, 4, 4))), MEAN),
    "npy": Reader("a.npy", lambda _: saved(lambda file: np.save(file, np.ones((3, 4, 4), "f4"))), MEAN),
    "npz": Reader("a.npz", lambda _: saved(lambda file: np.savez(file, w=np.ones((2, 3)), b=np.ones(2, "f4"))),
                  imported),
    "safetensors": Reader("a.safetensors", safetensors, imported),
    "safetensors of ours": Reader("b.safetensors", exported, read_weights, with_tensors),
    "pth": Reader("a.pth", lambda _: of_torch(True), imported),
    "pth's program": Reader("a.pth", program, imported, with_storages),
    "pth, legacy": Reader("a.pth", lambda _: of_torch(False), imported),
    "checkpoint": Reader("a.ckpt", saved_small, checkpoint.load),
    "checkpoint's header": Reader("a.ckpt", of_net, lambda path: checkpoint.rebuild(checkpoint.load(path)),
                                  lambda path, data: path.write_bytes(
                                      forged(data, path.with_name("rest").read_bytes()))),
    "checkpoint's tensors": Reader("a.ckpt", tensors_of, checkpoint.load, with_header),
    "IDX": Reader("train-images-idx3-ubyte", partial(of_idx, "images-idx3", ""), folder_opened),
    "IDX of labels": Reader("train-labels-idx1-ubyte", partial(of_idx, "labels-idx1", ""), folder_opened),
    "IDX.gz": Reader("train-images-idx3-ubyte.gz", partial(of_idx, "images-idx3", GZ), folder_opened),
    "EMNIST's mapping": Reader("emnist-letters-mapping.txt", of_mapping, folder_opened),
    "CIFAR, binary": Reader("set/data_batch_1.bin", partial(of_cifar, None, "data_batch_1.bin"), folder_opened),
    "CIFAR, pickle": Reader("set/data_batch_1", partial(of_cifar, 2, "data_batch_1"), folder_opened),
    "CIFAR's names": Reader("set/batches.meta", partial(of_cifar, 4, "batches.meta"), folder_opened),
    "meta.mat": Reader("meta.mat", partial(of_ilsvrc, "meta.mat"), folder_opened),
    "devkit.tar.gz": Reader(f"{KIT}.tar.gz", partial(of_ilsvrc, "kit"), folder_opened, packed_with_gzip),
    "ground truth": Reader("ILSVRC2010_validation_ground_truth.txt",
                           partial(of_ilsvrc, "ILSVRC2010_validation_ground_truth.txt"), folder_opened),
    "tar": Reader("a.tar", lambda _: tar_bytes(CLASSES), opened, with_sums),
    "tar.gz": Reader("a.tar.gz", lambda _: gzip.compress(tar_bytes(CLASSES)), opened),
    "tar.xz": Reader("a.tar.xz", lambda _: tar_bytes(CLASSES, "w:xz"), opened),
    "zip": Reader("a.zip", lambda folder: zip_of(folder / "b.zip", CLASSES).read_bytes(), opened),
    "WebDataset": Reader("a.tar", lambda _: tar_bytes(sample("a", "1") | sample("b", "0") | sample("c", "1")),
                         opened, with_sums),
    "WebDataset of arrays": Reader("a.tar", of_arrays, opened, with_sums),
    "list.txt": Reader("list.txt", partial(of_list, ""), opened),
    "list.csv": Reader("list.csv", partial(of_list, "name,label\n"), opened),
    "store.json": Reader("store/store.json", partial(of_store, "store.json"), read_store, sealed),
    "store's index": Reader("store/train.index.npy", partial(of_store, "train.index.npy"), read_store, listed),
    "store's keys": Reader("store/train.keys.jsonl", partial(of_store, "train.keys.jsonl"), read_store, listed),
    "store's mean": Reader("store/mean.npy", partial(of_store, "mean.npy"), read_store, listed),
    "store's left out": Reader("store/left_out.jsonl", partial(of_store, "left_out.jsonl"), read_left_out, listed),
    "store's shard": Reader("store/train-00000.tar", partial(of_store, "train-00000.tar"), read_store),
    "metrics.jsonl": Reader("metrics.jsonl", partial(of_run, "metrics.jsonl"), lambda path: curves(path.parent)),
    "summary.json": Reader("summary.json", partial(of_run, "summary.json"), read_run),
    "environment.json": Reader("environment.json", partial(of_run, "environment.json"), read_run),
    "recipe.toml": Reader("recipe.toml", partial(of_run, "recipe.toml"), load_recipe),
    "posteriors": Reader("a", of_posteriors, lambda path: rows(predictions.load(path))),
    **{kind: Reader("a", partial(of_picture, *how), read_picture, pixels=room) for kind, how in PICTURES.items()},
    "PNG, its CRCs right": Reader("a", partial(of_picture, "PNG", {}), read_picture, with_crcs, room),
    "--names": Reader("a", lambda _: SYNSETS, partial(class_names, WNIDS)),
    "--classes": Reader("a", lambda _: SYNSETS, lambda path: classes_of(path, 3, None, Report("a", "b", "c"))),
}  # fmt: skip

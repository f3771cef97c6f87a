import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convnet import checkpoint
from convnet.checkpoint import BEST, LAST, PREVIOUS, Checkpoint, Position, load, load_newest, rebuild, save
from convnet.data.preprocess import Preprocessing
from convnet.errors import ConvnetError, DataError, DiskError
from convnet.io import atomic
from convnet.io import safetensors as tensors
from convnet.nets import create_model
from convnet.recipe import Recipe

PLAIN = Preprocessing(size=4, pad=0, crop=4, channels="rgb", mean=None, scale=1.0, offset=0.0)
RECIPE = Recipe(size=4, crop=4)


def small(seed=0, **changes):
    """A checkpoint of some 1,500 bytes."""
    torch.manual_seed(seed)
    content = {
        "recipe": RECIPE,
        "preprocessing": replace(PLAIN, mean=np.float32([1.5, 2.5, 3.5])),
        "classes": ("cat", "dog"),
        "weights": {"w": torch.randn(2, 3), "b": torch.randn(2)},
        "velocity": {"w": torch.randn(2, 3), "b": torch.randn(2)},
        "position": Position(epoch=2, step=7, validation_errors=(0.5,), best_error=0.5, loss_sum=0.1 + 0.2),
        "provenance": {"torch": "2", "seed": seed},
        "record": b'{"epoch": 1}\n',
    }
    return Checkpoint(**{**content, **changes})


def same(a, b):
    def equal(x, y):
        return x.keys() == y.keys() and all(
            x[n].dtype == y[n].dtype and x[n].shape == y[n].shape and raw(x[n]) == raw(y[n]) for n in x
        )

    def raw(tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    names = ("recipe", "preprocessing", "classes", "position", "provenance", "record")
    if any(getattr(a, name) != getattr(b, name) for name in names) or not equal(a.weights, b.weights):
        return False
    return (a.velocity is None) == (b.velocity is None) and (a.velocity is None or equal(a.velocity, b.velocity))


def bytes_of(kept, folder):
    save(folder / "bytes.ckpt", kept)
    return (folder / "bytes.ckpt").read_bytes()


# Round trips


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"velocity": None},
        {"record": None},
        {"preprocessing": PLAIN},
        {"preprocessing": replace(PLAIN, mean=np.random.default_rng(0).random((4, 4, 3), np.float32))},
        {"classes": ("Ärzte", "\udcff", "a\nb", "")},
        {"position": Position()},
        {"recipe": replace(RECIPE, net_options={"output": "linear", "k": 2, "on": True, "x": 0.1})},
        {"weights": {}},
    ],
    ids=lambda changes: next(iter(changes), "whole"),
)
def test_what_is_saved_comes_back_bitwise(tmp_path, changes):
    kept = small(**changes)
    save(tmp_path / "a.ckpt", kept)
    assert same(load(tmp_path / "a.ckpt"), kept)


def test_every_type_and_layout_of_tensor_comes_back_bitwise(tmp_path):
    weights = {}
    for dtype in tensors.DTYPES.values():
        values = torch.randint(0, 2, (3, 5)) if dtype == torch.bool else torch.randn(3, 5) * 50
        weights[f"{dtype}"] = values.to(dtype)
        weights[f"{dtype} turned"] = values.to(dtype).t()
    weights["channels last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    weights["number"], weights["nothing"] = torch.tensor(3.25), torch.empty(0, 7)
    weights["odd"] = torch.tensor([math.nan, -0.0, math.inf, 1e-42])
    weights["a part"] = torch.arange(10)[3:5]
    kept = small(weights=weights)
    save(tmp_path / "a.ckpt", kept)
    assert same(load(tmp_path / "a.ckpt"), kept)


def test_equal_content_gives_equal_bytes(tmp_path):
    kept = small()
    turned = replace(kept, weights=dict(reversed(kept.weights.items())))
    assert bytes_of(kept, tmp_path) == bytes_of(turned, tmp_path) == bytes_of(load(tmp_path / "bytes.ckpt"), tmp_path)


def test_a_parameter_is_saved_without_its_graph(tmp_path):
    net = create_model("lenet5", seed=1)
    save(tmp_path / BEST, small(weights=dict(net.named_parameters())))
    assert not any(tensor.requires_grad for tensor in load(tmp_path / BEST).weights.values())


def test_a_checkpoint_rebuilds_its_net(tmp_path):
    net = create_model("lenet5", num_classes=3, output="linear", seed=5).eval()
    recipe = Recipe(net="lenet5", net_options={"output": "linear"}, init="fan-in")
    save(tmp_path / BEST, small(recipe=recipe, classes=("a", "b", "c"), weights=net.state_dict()))
    before = torch.get_rng_state()
    again = rebuild(load(tmp_path / BEST))
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(net(images), again(images))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "the weights don't fit net lenet5: .* is missing"),
        ({"recipe": Recipe(net="lenet6")}, "the weights don't fit net lenet6: unknown net 'lenet6'"),
        ({"recipe": Recipe(net="lenet5", net_options={"num_classes": 3})}, "the weights don't fit net lenet5"),
    ],
)
def test_weights_of_another_net_are_refused(changes, text):
    kept = small(**{"recipe": Recipe(net="lenet5"), "classes": tuple("0123456789"), **changes})
    with pytest.raises(DataError, match=text):
        rebuild(kept)


# The format


def test_docs_checkpoint_md_is_enough_to_read_one(tmp_path):
    """Written from the page alone: no code of convnet but the file."""
    page = (Path(__file__).parent.parent / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    kept = small()
    data = bytes_of(kept, tmp_path)
    magic = bytes.fromhex(page.split("magic: ")[1].split(" (")[0])
    assert data[:8] == magic
    version, length = struct.unpack_from("<IQ", data, 8)
    assert version == 3
    assert length <= 2_097_152
    header_bytes = data[52 : 52 + length]
    assert hashlib.sha256(data[:20] + header_bytes).digest() == data[20:52]
    header = json.loads(header_bytes.decode())
    assert all(f"| `{name}` |" in page for name in header)
    assert all(f"`{name}`" in page for part in ("position", "preprocessing") for name in header[part])
    assert header["classes"] == ["cat", "dog"]
    assert header["position"]["loss_sum"] == 0.1 + 0.2
    end, found = 52 + length, {}
    for section in header["sections"]:
        body = data[end : end + section["length"]]
        end += section["length"]
        assert hashlib.sha256(body).hexdigest() == section["sha256"]
        if section["name"] == "record":
            assert body == kept.record
            continue
        (n,) = struct.unpack_from("<Q", body)
        assert n % 8 == 0
        for name, entry in json.loads(body[8 : 8 + n]).items():
            begin, stop = entry["data_offsets"]
            assert entry["dtype"] == "F32"
            numbers = np.frombuffer(body[8 + n + begin : 8 + n + stop], "<f4").reshape(entry["shape"])
            found[f"{section['name']}/{name}"] = numbers
        assert safetensors.torch.load(body).keys() == json.loads(body[8 : 8 + n]).keys()
    assert end == len(data)
    assert list(found) == ["weights/b", "weights/w", "velocity/b", "velocity/w", "preprocessing/mean"]
    np.testing.assert_array_equal(found["weights/w"], kept.weights["w"])
    np.testing.assert_array_equal(found["velocity/b"], kept.velocity["b"])
    np.testing.assert_array_equal(found["preprocessing/mean"], [1.5, 2.5, 3.5])


def forged(header, rest=b"", version=1):
    """A file whose header has the right sha256, whatever it says."""
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = struct.pack("<8sIQ", checkpoint.MAGIC, version, len(body))
    return head + hashlib.sha256(head + body).digest() + body + rest


def parts(data):
    length = struct.unpack_from("<Q", data, 12)[0]
    return json.loads(data[52 : 52 + length]), data[52 + length :]


def refused(path, data, text):
    path.write_bytes(data)
    with pytest.raises(DataError, match=text) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_newer_format_says_update(tmp_path):
    header, rest = parts(bytes_of(small(), tmp_path))
    text = r"written by a newer convnet \(format 4; this one reads 1 to 3\): update convnet"
    refused(tmp_path / "a", forged(header, rest, version=4), text)


def test_a_file_of_format_1_is_read(tmp_path):
    """It had no record."""
    header, rest = parts(bytes_of(small(record=None), tmp_path))
    (tmp_path / "a").write_bytes(forged(header, rest, version=1))
    assert load(tmp_path / "a").record is None
    assert torch.equal(load(tmp_path / "a").weights["w"], small().weights["w"])


def test_a_net_that_its_weights_do_not_fill_takes_no_memory(tmp_path):
    """Shapes are compared before there are weights: 30,000 classes would be 0.5 GB."""
    named = tuple(map(str, range(30_000)))
    wrong = small(recipe=Recipe(net="alexnet"), classes=named, weights={"fc8.weight": torch.zeros(3, 4)})
    with Made() as made, pytest.raises(DataError, match=r"the weights don't fit net alexnet: fc8.weight has shape"):
        rebuild(wrong)
    assert made.elements < 1_000_000


class Made(TorchDispatchMode):
    """Counts the elements of tensors that are made and hold memory."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type != "meta":
            self.elements += out.numel()
        return out


def test_damage_is_named(tmp_path):
    data = bytes_of(small(), tmp_path)
    path = tmp_path / "a.ckpt"
    refused(path, b"", "not a convnet checkpoint")
    refused(path, b"PK\x03\x04" + data[4:], "not a convnet checkpoint, or its first bytes are damaged")
    refused(path, data[:30], "damaged header: the file ends after 30 bytes")
    refused(path, data[:60], "damaged header: it should have")
    refused(path, data[:100] + b"?" + data[101:], "damaged header: its sha256 is wrong")
    refused(path, data[:-1], "damaged: the file has")
    refused(path, data + b"\0", "damaged: the file has")
    header, _ = parts(data)
    at = len(data)
    for section in reversed(header["sections"]):
        at -= section["length"]
        changed = bytearray(data)
        changed[at + section["length"] - 1] ^= 1
        refused(path, bytes(changed), f"damaged {section['name']}: the sha256 is wrong")
    with pytest.raises(DataError, match="absent: cannot be read: No such file"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match="Is a directory"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file but a fifo"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("left_out", "more", "text"),
    [("epoch", {}, "position epoch is missing"), ("", {"age": 3}, "position age is unknown")],
)
def test_a_position_with_other_fields_is_refused(tmp_path, left_out, more, text):
    header, rest = parts(bytes_of(small(), tmp_path))
    header["position"] = {name: value for name, value in header["position"].items() if name != left_out} | more
    refused(tmp_path / "a.ckpt", forged(header, rest), text)


def test_a_run_begins_before_the_first_step_of_epoch_1():
    start = Position()
    assert (start.epoch, start.batch, start.step, start.pictures, start.errors, start.loss_sum) == (1, 0, 0, 0, 0, 0.0)
    assert (start.validation_errors, start.best_error, start.rows) == ((), None, 0)


# T3: every truncation, every flipped bit


def test_every_truncation_and_every_flipped_bit_is_found(tmp_path):
    kept = small(preprocessing=PLAIN, weights={"w": torch.ones(3)}, velocity={"w": torch.ones(3)})
    save(tmp_path / LAST, kept, keep_previous=True)
    save(tmp_path / LAST, kept, keep_previous=True)
    data = (tmp_path / LAST).read_bytes()
    injected = found = 0

    def injure(damaged):
        nonlocal injected, found
        injected += 1
        with open(tmp_path / LAST, "r+b") as file:  # in place: the other name must not share these bytes
            file.write(damaged)
            file.truncate()
        with pytest.raises(DataError, match=r"damage|newer"):
            load(tmp_path / LAST)
        found += 1

    (tmp_path / LAST).unlink()
    (tmp_path / LAST).write_bytes(data)
    for length in range(len(data)):
        injure(data[:length])
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        injure(bytes(changed))
    assert injected == len(data) * 9
    assert found == injected, f"{found} of {injected} damages found"
    again, path, warnings = load_newest(tmp_path)
    assert same(again, kept)
    assert path.name == PREVIOUS
    assert len(warnings) == 1
    assert "last.ckpt: damaged record: the sha256 is wrong; going on from last.previous.ckpt" in warnings[0]


def test_nothing_to_go_on_from(tmp_path):
    with pytest.raises(DataError, match=r"no checkpoint \(last.ckpt or last.previous.ckpt\) in this folder"):
        load_newest(tmp_path)
    (tmp_path / LAST).write_bytes(b"x")
    with pytest.raises(DataError, match=r"last.ckpt: not a convnet checkpoint.*previous.ckpt: cannot be read"):
        load_newest(tmp_path)


# T2 and T10: a save that is killed, or that fails, at any moment


class Disk:
    """The operations of a save, in order. Before each one `on` is called with its number and its name."""

    def __init__(self, monkeypatch, on):
        self.on, self.names = on, []
        for name in ("fsync", "replace", "link"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))
        monkeypatch.setattr(atomic, "open", self.opened, raising=False)

    def wrapped(self, name, real):
        def call(*arguments, **options):
            self.before(name)
            return real(*arguments, **options)

        return call

    def opened(self, path, mode):
        self.before("open")
        file = open(path, mode, buffering=0)  # noqa: SIM115 - every write reaches the disk, for the snapshots
        return Watched(file, self)

    def before(self, name):
        self.names.append(name)
        self.on(len(self.names) - 1, name)


class Watched:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        data = bytes(data)
        self.disk.before("write")
        self.file.write(data[: len(data) // 2])
        self.disk.before("write")
        self.file.write(data[len(data) // 2 :])


OLD, NEW = small(1), small(2)


def prepared(folder, state):
    """A run's folder with the checkpoint OLD, in some state that a crash can leave."""
    folder.mkdir()
    if state != "empty":
        save(folder / LAST, small(0), keep_previous=True)
        save(folder / LAST, OLD, keep_previous=True)
    if state == "last is damaged":
        save(folder / LAST, small(3), keep_previous=True)
        (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-5])
    if state == "last is missing":
        (folder / PREVIOUS).unlink()
        (folder / LAST).rename(folder / PREVIOUS)
    if state == "leftovers":
        for name in (LAST, PREVIOUS):
            (folder / f".{name}.part").write_bytes(b"leftover")
    return folder


STATES = ("whole", "last is damaged", "last is missing", "leftovers")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("state", STATES)
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, state, links):
    folder = prepared(tmp_path / "run", state)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    disk = Disk(monkeypatch, lambda number, _: shutil.copytree(folder, tmp_path / f"killed at {number}"))
    save(folder / LAST, NEW, keep_previous=True)
    monkeypatch.undo()
    assert disk.names.count("write") >= 8
    assert disk.names.count("fsync") >= 2
    assert "replace" in disk.names
    assert ("link" in disk.names) == (state in ("whole", "leftovers"))
    seen = []
    for number in range(len(disk.names)):
        found, _, _ = load_newest(tmp_path / f"killed at {number}")
        seen.append("new" if same(found, NEW) else "old" if same(found, OLD) else "other")
    assert set(seen) == {"old", "new"}, list(zip(disk.names, seen, strict=True))
    assert seen == sorted(seen, reverse=True)  # old, then new
    assert same(load_newest(folder)[0], NEW)
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == sorted([LAST, PREVIOUS])
    assert same(load(folder / PREVIOUS), OLD)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
@pytest.mark.parametrize("state", ["empty", *STATES])
def test_a_save_that_fails_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, state, number):
    at = 0
    while True:
        folder, caught = prepared(tmp_path / f"run {at}", state), None

        def fail(count, name, at=at):
            if count == at:
                raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            disk = Disk(patch, fail)
            try:
                save(folder / LAST, NEW, keep_previous=True)
            except DiskError as error:
                caught = str(error)
        if len(disk.names) <= at:  # the save has no operation of this number
            break
        assert caught is not None, f"the fault in {disk.names[at]} was swallowed"
        assert str(folder / LAST) in caught
        assert ("disk full" if number == errno.ENOSPC else "Input/output error") in caught
        if state != "empty" or (folder / LAST).exists():
            found = load_newest(folder)[0]
            assert same(found, OLD) or same(found, NEW)
        if state != "leftovers":
            assert not [path.name for path in folder.iterdir() if path.name[0] == "."]
        at += 1
    assert at >= 12


# T18: files made to harm


ALLOWED = [("provenance", {}), ("provenance", {"x": 3}), ("classes", []), ("recipe", {})]


def hostile(tmp_path):
    """(name, bytes) of files whose sha256 are right and whose content isn't."""
    header, rest = parts(bytes_of(small(), tmp_path))

    def changed(**changes):
        return forged({**header, **changes}, rest)

    yield "deep JSON", forged(b"[" * 500_000)
    yield "deep object", forged(b'{"a":' * 200_000)
    yield "no object", forged(b"3")
    yield "not JSON", forged(b"\xff")
    yield "a name twice", forged(json.dumps(header).encode()[:-1] + b',"classes":[]}', rest)
    yield "long number", forged(b'{"a":' + b"9" * 100_000 + b"}")
    yield "infinite number", forged(json.dumps(header).encode().replace(b"0.0005", b"1e999999"), rest)
    for name in header:
        yield f"no {name}", forged({key: value for key, value in header.items() if key != name}, rest)
        for value in (None, 3, [], {}, "x", [3], {"x": 3}, [None], [[]]):
            if (name, value) not in ALLOWED:
                yield f"{name} = {value}", changed(**{name: value})
    for name, field in header["position"].items():
        for value in (-1, 1.5 if isinstance(field, int) else 3, "x", True, [3]):
            if not (field is None and value is None):
                yield f"position {name} = {value}", changed(position={**header["position"], name: value})
    for name in header["preprocessing"]:
        for value in (-1, "x", [], None, 10**30):
            yield f"preprocessing {name} = {value}", changed(preprocessing={**header["preprocessing"], name: value})
    yield "recipe", changed(recipe={"crop": 10**400})
    for length in (-1, 0, 1 << 60, 10**40, 1.0, None):
        sections = [{**header["sections"][0], "length": length}, *header["sections"][1:]]
        yield f"length {length}", changed(sections=sections)
    sections = header["sections"]
    ends = itertools.accumulate(section["length"] for section in sections)
    bodies = [rest[end - section["length"] : end] for section, end in zip(sections, ends, strict=True)]
    yield "two weights", forged({**header, "sections": [sections[0]] * 3}, bodies[0] * 3)
    yield "other order", forged({**header, "sections": sections[::-1]}, b"".join(bodies[::-1]))
    n = sections[0]["length"] + sections[1]["length"]
    lengths = ({**sections[0], "length": -1}, {**sections[1], "length": n + 1})
    yield "a negative length that the next makes up for", changed(sections=[*lengths, *sections[2:]])
    yield "a class that is no text", changed(classes=["cat", 3])
    yield "huge header", struct.pack("<8sIQ32s", checkpoint.MAGIC, 1, 1 << 62, b"")
    for name, body in lying_tensors():
        section = {"name": "weights", "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        yield f"tensors: {name}", forged({**header, "sections": [section]}, body)


def lying_tensors():
    def made(entries, data=b"\0" * 8):
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + data

    def one(dtype="F32", shape=(2,), place=(0, 8)):
        return {"w": {"dtype": dtype, "shape": shape, "data_offsets": place}}

    yield "empty", b""
    yield "short", b"\0\0\0"
    yield "length", struct.pack("<Q", 1 << 63) + b"{}"
    yield "not JSON", made(b"\xff")
    yield "deep", made(b"[" * 100_000)
    yield "twice", made(json.dumps(one()).encode()[:-1] + b"," + json.dumps(one()).encode()[1:])
    yield "no entry", made({"w": 3})
    yield "dtype", made(one(dtype="F4"))
    yield "dtype list", made(one(dtype=["F32"]))
    yield "negative", made(one(shape=(-2,)))
    yield "huge", made(one(shape=(1 << 62,)))
    yield "product", made(one(shape=(1 << 40, 1 << 40)))
    yield "zero", made(one(shape=(0, 1 << 40, 1 << 40)))
    yield "bool", made(one(shape=(True, 2)))
    yield "many axes", made(one(shape=(1,) * 100 + (2,)))
    yield "beyond", made(one(shape=(4,), place=(0, 16)))
    yield "backwards", made(one(place=(8, 0)))
    yield "gap", made(one(shape=(1,), place=(4, 8)))
    yield "rest", made(one(shape=(1,), place=(0, 4)))
    yield "overlap", made({**one(), "v": one()["w"]})


def test_files_made_to_harm_are_refused_and_cost_no_memory(tmp_path):
    path, n = tmp_path / "a.ckpt", 0
    for name, data in hostile(tmp_path):
        path.write_bytes(data)
        tracemalloc.start()
        try:
            load(path)
        except DataError:
            n += 1
        else:
            pytest.fail(f"{name} was loaded")
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 2 * len(data) + (64 << 20), name
    assert n > 150


# What a save refuses


def test_a_position_with_nan_is_not_saved(tmp_path):
    with pytest.raises(ConvnetError, match="not saved: the position or provenance holds NaN"):
        save(tmp_path / LAST, small(position=Position(loss_sum=math.nan)))
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_could_not_be_read_back_is_not_saved(tmp_path):
    with pytest.raises(ConvnetError, match=r"not saved: the header has .* at most 2097152 are allowed"):
        save(tmp_path / LAST, small(classes=tuple(f"{n:060d}" for n in range(40_000))))
    save(tmp_path / LAST, small(classes=tuple(f"n{n:08d}, the name of a class" for n in range(22_000))))


def test_a_header_of_as_many_bytes_as_are_allowed_is_saved_and_read(tmp_path, monkeypatch):
    header = struct.unpack_from("<Q", bytes_of(small(), tmp_path), 12)[0]
    monkeypatch.setattr(checkpoint, "MAX_HEADER", header)
    save(tmp_path / LAST, small())
    assert same(load(tmp_path / LAST), small())
    monkeypatch.setattr(checkpoint, "MAX_HEADER", header - 1)
    with pytest.raises(
        ConvnetError, match=f"not saved: the header has {header} bytes, at most {header - 1} are allowed"
    ):
        save(tmp_path / LAST, small())


def test_saving_holds_no_second_copy(tmp_path):
    weights = {"w": torch.zeros(16 << 20, dtype=torch.uint8)}
    tracemalloc.start()
    save(tmp_path / LAST, small(weights=weights), keep_previous=True)
    save(tmp_path / LAST, small(weights=weights), keep_previous=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20

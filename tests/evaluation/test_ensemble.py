"""Several nets on the same pictures: fusion against plain averages, the file that keeps answers, stops and damage."""

import hashlib
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from conftest import scores_of, trained_net
from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.cli import app as cli
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources.listing import Entry, Source
from convnet.data.store import Split, Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation import predictions as kept
from convnet.evaluation.ensemble import join, rows
from convnet.evaluation.metrics import Scores, interval, rank, sign_test
from convnet.evaluation.predictions import Member, Predictions, ask, load
from convnet.evaluation.views import Look, Protocol, protocol
from convnet.io import safetensors as tensors
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.nets.layers import Net
from convnet.progress import Silent
from convnet.recipe import Recipe

CPU = device.choose("fp32", "cpu")
NET = {"net": "cifar_26", "size": 32, "crop": 32, "mean": "rgb", "scale": 0.01}


def net(seed: int) -> Net:
    """Its weights are large enough that the pictures matter."""
    made = create_model("cifar_26", num_classes=3, seed=seed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
    return made


def members(store: Store, *views: str) -> list[Member]:
    pre = preprocess.of_recipe(Recipe(**NET), store.mean_picture, store.statistics.mean_rgb)
    asked = tuple(protocol(name, pre) for name in views)
    return [Member(f"net{seed}", f"sha{seed}", trained_net(net(seed), pre), asked) for seed in range(3)]


def alone(store: Store, member: Member, name: str) -> np.ndarray:
    """float (n, K), picture by picture in plain torch; at 32 of 32 pixels all crops are the whole picture."""
    out = []
    mean = member.net.preprocessing.mean
    for i in range(store.split("test").n):
        pixels = (store.split("test").square(i).astype(np.float32) - mean) * np.float32(0.01)
        image = torch.tensor(pixels).permute(2, 0, 1)[None]
        looks = [image] if name == "single" else [image, image.flip(3)]
        with torch.inference_mode():
            out.append(np.mean([member.net.net(look).softmax(1)[0].numpy() for look in looks], axis=0))
    return np.array(out)


@pytest.fixture(scope="module")
def file(photos: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "a"
    ask(members(photos, "single", "ten-crop+dense"), photos.split("test"), file=path)
    return path


@pytest.fixture(scope="module")
def asked(file: Path) -> Predictions:
    return load(file)


def whole(answers: Predictions) -> list[dict[Look, np.ndarray]]:
    """All posteriors in memory, float32 (n, K), by member and look."""
    blocks = list(answers.blocks())
    return [
        {look: np.concatenate([block[i][look] for block in blocks]) for look in blocks[0][i]}
        for i in range(len(answers.members))
    ]


def test_a_fusion_of_three_nets_is_the_mean_of_their_posteriors(photos: Store, asked: Predictions) -> None:
    for place, name in ((0, "single"), (1, "ten-crop")):
        each = [alone(photos, member, name) for member in members(photos, "single")]
        for member, posteriors, expected in zip(asked.members, whole(asked), each, strict=True):
            found = member.protocols[place].mean(posteriors)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            assert found.std(0).max() > 1e-3, "the posteriors hardly depend on the pictures"
        for weights in (None, [1.0, 0.0, 0.0], [2.0, 1.0, 1.0]):
            mean = np.average(each, axis=0, weights=weights)
            row = rows(asked, weights)[-2 + place]
            assert row.scores.top1 == (mean.argmax(1) != asked.labels).mean()
            loss = -np.log(mean[np.arange(len(mean)), asked.labels]).mean()
            assert row.scores.loss == pytest.approx(loss, rel=1e-5)


def test_the_table_has_every_scale_and_part_of_every_net_and_the_fusion(photos: Store, asked: Predictions) -> None:
    table = [(row.net, row.views, row.scales) for row in rows(asked)]
    one = ["single", "ten-crop", "dense", "ten-crop+dense"]
    expected = [(f"net{i}", name, "32") for i in range(3) for name in one]
    fused = "net0 + net1 + net2"
    assert table == [*expected, (fused, "single", "32"), (fused, "ten-crop+dense", "32")]
    scores = trained_net(net(1), members(photos, "single")[1].net.preprocessing).evaluate(photos.split("test"))
    row = next(row for row in rows(asked) if (row.net, row.views) == ("net1", "single"))
    assert (row.scores.top1, row.scores.loss) == (scores.top1, pytest.approx(scores.loss, rel=1e-6))


def test_the_file_gives_everything_back(tmp_path: Path, photos: Store, file: Path, asked: Predictions) -> None:
    """Its bytes are those of a plain safetensors file of the whole arrays, here written by their own library."""
    nets = members(photos, "single", "ten-crop+dense")
    live = ask(nets, photos.split("test"))
    assert (live.classes, live.keys, live.store, live.split, live.members) == (
        asked.classes,
        asked.keys,
        asked.store,
        asked.split,
        asked.members,
    )
    np.testing.assert_array_equal(live.labels, asked.labels)
    arrays = {"labels": asked.labels}
    for i, (one, other) in enumerate(zip(whole(live), whole(asked), strict=True)):
        assert list(one) == list(other)
        assert all(np.array_equal(one[look], other[look]) for look in one)
        arrays |= {f"{i}/{look}": rows for look, rows in one.items()}
    read = safetensors.numpy.load_file(file)
    looks = [f"{i}/{look}" for i, one in enumerate(whole(asked)) for look in one]
    blocks = [np.concatenate([arrays[look][a : a + 64] for look in looks], 1) for a in range(0, len(asked.keys), 64)]
    digests = [hashlib.sha256(block.tobytes()).digest() for block in blocks]
    header = file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")]
    rest = b"".join([header, asked.labels.tobytes(), read["meta"].tobytes(), *digests])
    arrays["sha256"] = np.frombuffer(b"".join([*digests, hashlib.sha256(rest).digest()]), np.uint8).reshape(-1, 32)
    assert set(read) == {*arrays, "meta"}
    assert all(np.array_equal(read[name], array) and read[name].dtype == array.dtype for name, array in arrays.items())
    content = {name: torch.from_numpy(array) for name, array in read.items()}
    assert file.read_bytes() == b"".join(map(bytes, tensors.pieces(content, {"format": kept.FORMAT})))
    for i in range(3):
        ask(nets[i : i + 1], photos.split("test"), file=tmp_path / str(i))
    joined = join([load(tmp_path / str(i)) for i in range(3)])
    assert [row.to_dict() for row in rows(joined)] == [row.to_dict() for row in rows(asked)]


def former_scores(views: str, asked: Predictions, mean: np.ndarray) -> Scores:
    """As all posteriors, float64 (n, K), were counted at once before they were counted as they come."""
    labels, ids = asked.labels, np.arange(len(asked.labels))
    top = np.argsort(-mean, axis=1, kind="stable")[:, :5]
    parts = np.take_along_axis(mean, top, 1), mean[ids, labels]
    return Scores(views, asked.split, asked.classes, ids, labels, top, *parts, rank(mean, labels))


@pytest.mark.parametrize("weights", [None, [3.0, 0.5, 1.0]])
def test_posteriors_counted_as_they_come_give_the_figures_of_all_at_once(
    asked: Predictions, weights: list[float] | None
) -> None:
    """To the last bit, classes, confusion and fusion too."""
    posteriors, found = whole(asked), iter(rows(asked, weights))
    for member, own in zip(asked.members, posteriors, strict=True):
        parts = [((look,),) for look in (Look("single", 32), Look("ten-crop", 32), Look("dense", 32))]
        for each in (*parts, member.protocols[1].parts):
            row, mean = next(found), Protocol("a", each).mean(own)
            assert row.scores.to_dict() == former_scores(row.views, asked, mean).to_dict()
            np.testing.assert_array_equal(row.scores.ranks, rank(mean, asked.labels))
    for place in (0, 1):
        means = [member.protocols[place].mean(own) for member, own in zip(asked.members, posteriors, strict=True)]
        row, mean = next(found), np.average(means, axis=0, weights=weights)
        assert row.scores.to_dict() == former_scores(row.views, asked, mean).to_dict()
    assert next(found, None) is None


class Many(nn.Module):
    """A net of many classes and few weights."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(3, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.mean((2, 3)))


def test_memory_does_not_grow_with_the_posteriors(tmp_path: Path) -> None:
    """A further picture takes less than 1,000 bytes, names included, where its posteriors of one net have 8,000."""
    n_classes, few, many = 2001, 192, 832  # more than two blocks each
    entries = [Entry(f"{part}/{i:04d}", part, i % n_classes, i, str(i)) for part, n in
               (("train", n_classes), ("val", few), ("test", many)) for i in range(n)]  # fmt: skip
    classes = tuple(f"class{k:04d}" for k in range(n_classes))
    source = Source(
        "many", "noise", classes, entries, (), (), 8, (), lambda entry: np.full((8, 8, 3), entry.place % 256, np.uint8)
    )
    store = prepare(source, tmp_path / "store", size=8)
    done = Preprocessing(8, 0, 8, "rgb", None, 1 / 64, -2.0)
    torch.manual_seed(0)
    nets = [trained_net(Many(n_classes), done) for _ in range(2)]
    members = [Member(f"net{i}", f"sha{i}", net, (protocol("single", done),)) for i, net in enumerate(nets)]

    def peak(work: Callable[[Split], object], split: str) -> int:
        store.split(split).keys  # noqa: B018 - read once, for all
        tracemalloc.start()
        try:
            work(store.split(split))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for split in ("val", "test"):
        ask(members, store.split(split), file=tmp_path / f"{split} made")
    for work in (
        lambda split: members[0].net.evaluate(split).to_dict(),
        lambda split: rows(ask(members, split))[-1].scores.to_dict(),
        lambda split: ask(members, split, file=tmp_path / split.name),
        lambda split: rows(join([load(tmp_path / f"{split.name} made")] * 2))[-1].scores.to_dict(),
    ):
        grown = peak(work, "test") - peak(work, "val")
        assert grown < 1000 * (many - few), f"{grown / (many - few):,.0f} bytes a picture"


class Counting(nn.Module):
    """A net that counts the pictures that it sees, and asks for a stop after some."""

    def __init__(self, inner: nn.Module, stop: Stop | None = None, after: int = 0) -> None:
        super().__init__()
        self.inner, self.seen, self.stop, self.after = inner, 0, stop, after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        if self.stop is not None and not self.stop and self.seen >= self.after:
            self.stop.ask(15)
        return self.inner(images)


def of(member: Member, net: nn.Module) -> Member:
    """The member with another net."""
    return replace(member, net=replace(member.net, net=net))


def test_a_stopped_evaluation_goes_on_behind_its_last_whole_record(tmp_path: Path, photos: Store) -> None:
    split, file = photos.split("test"), tmp_path / "a"
    part = tmp_path / "a.part"
    undisturbed = whole(ask(members(photos, "single")[:1], split, file=tmp_path / "b"))
    stop = Stop()
    (member,) = members(photos, "single")[:1]
    stopping = of(member, Counting(member.net.net, stop, 10))
    with pytest.raises(Interrupted, match=r"stopped after 64 of 100 pictures; the same command goes on"):
        ask([stopping], split, file=file, stop=stop)
    assert not file.exists()
    data = part.read_bytes()
    assert len(data) == 65 + 64 * (3 * 4 + 4)
    for torn, n_left in ((data, 36), (data + b"torn", 36), (data[:-5], 100), (data[:200] + b"?" + data[201:], 100)):
        part.write_bytes(torn)  # a record that was cut off, or damaged: its batch is asked again
        file.unlink(missing_ok=True)
        counting = of(member, Counting(member.net.net))
        ask([counting], split, file=file)
        assert counting.net.net.seen == n_left
        assert file.read_bytes() == (tmp_path / "b").read_bytes()
        assert not part.exists()
    again = of(member, Counting(member.net.net))
    found = ask([again], split, file=file)
    assert again.net.net.seen == 0
    assert np.array_equal(whole(found)[0][Look("single", 32)], undisturbed[0][Look("single", 32)])


def test_other_questions_are_not_mixed(tmp_path: Path, photos: Store) -> None:
    one, two = members(photos, "single")[:2]
    ask([one], photos.split("test"), file=tmp_path / "a")
    with pytest.raises(UsageError, match=r"a is about other nets, views or pictures; choose another file"):
        ask([two], photos.split("test"), file=tmp_path / "a")
    ask([two], photos.split("val"), file=tmp_path / "v")
    with pytest.raises(UsageError, match=r"the files are about other pictures: 100 of split test .* and 30 of val"):
        join([load(tmp_path / "a"), load(tmp_path / "v")])
    other = Stop()
    other.ask(15)
    with pytest.raises(Interrupted, match="--posteriors FILE would let it go on"):
        rows(ask([one], photos.split("test"), stop=other))


def test_an_evaluation_that_is_being_made_is_not_made_twice(tmp_path: Path, photos: Store) -> None:
    """Who asks for the same file meanwhile, or for another's answers in it, is refused at once."""
    one, two = members(photos, "single")[:2]
    refused: list[str] = []

    class Meanwhile(Counting):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for other in (one, two):
                with pytest.raises(UsageError) as caught:
                    ask([other], photos.split("test"), file=tmp_path / "a")
                refused.append(str(caught.value))
            return super().forward(images)

    net = Meanwhile(one.net.net)
    ask([of(one, net)], photos.split("test"), file=tmp_path / "a")
    assert net.seen == 100
    text = f"a is in use by process {os.getpid()} (evaluating); wait for it, or choose another file"
    assert len(refused) >= 4
    assert all(text in each for each in refused)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Warned(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


def test_answers_to_other_questions_that_were_begun_go_with_a_word(tmp_path: Path, photos: Store) -> None:
    one, two = members(photos, "single")[:2]
    stop, warned = Stop(), Warned()
    with pytest.raises(Interrupted):
        ask([of(one, Counting(one.net.net, stop, 10))], photos.split("test"), file=tmp_path / "a", stop=stop)
    ask([two], photos.split("test"), file=tmp_path / "a", progress=warned)
    assert ["a.part is about other nets, views or pictures, or damaged" in line for line in warned.lines] == [True]
    ask([two], photos.split("test"), file=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_an_earlier_version_is_read_with_a_word(tmp_path: Path, file: Path, asked: Predictions) -> None:
    """It had no sha256."""
    content = {name: torch.from_numpy(array) for name, array in safetensors.numpy.load_file(file).items()}
    for name, less in (("a", {"sha256"}), ("b", {"sha256", "1/single at 32"})):
        old = {key: tensor for key, tensor in content.items() if key not in less}
        (tmp_path / name).write_bytes(b"".join(map(bytes, tensors.pieces(old, {"format": kept.FORMAT}))))
    warned = Warned()
    found = rows(load(tmp_path / "a", warned))
    assert [row.to_dict() for row in found] == [row.to_dict() for row in rows(asked)]
    assert ["a is of an earlier version, without sha256" in line for line in warned.lines] == [True]
    with pytest.raises(DataError, match="b is no file that convnet evaluate"):
        load(tmp_path / "b")
    data = bytearray((tmp_path / "a").read_bytes())
    place = 8 + int.from_bytes(data[:8], "little") + 8 * 100 + 4 * 1000  # behind the header and the labels
    (tmp_path / "a").write_bytes(data[:place] + np.float32("nan").tobytes() + data[place + 4 :])
    with pytest.raises(DataError, match=r"a is no file that convnet evaluate .*: its probabilities are not finite"):
        rows(load(tmp_path / "a"))
    (tmp_path / "c").write_bytes(b"".join(map(bytes, tensors.pieces(old | {"1/single at 33": content["labels"]}))))
    with pytest.raises(DataError, match="c is no file that convnet evaluate"):
        load(tmp_path / "c")


def test_a_damaged_file_of_posteriors_is_refused(tmp_path: Path, file: Path) -> None:
    data = file.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[generator.integers(0, len(data))] ^= 1 + generator.integers(0, 255)
        cut = generator.integers(1, len(data))
        (tmp_path / "b").write_bytes(changed[:cut] if generator.random() < 0.2 else changed)
        with pytest.raises(DataError, match=r"b is no file that convnet evaluate .*; evaluate again"):
            rows(load(tmp_path / "b"))
    place = 8 + int.from_bytes(data[:8], "little") + 8 * 100 + 4 * 1000  # behind the header and the labels
    (tmp_path / "b").write_bytes(data[: place - 40] + np.float32(0.5).tobytes() + data[place - 36 :])
    with pytest.raises(DataError, match=r"it is damaged: the sha256 of pictures \d+ to \d+ does not match"):
        rows(load(tmp_path / "b"))
    for name, content in {"empty": b"", "text": b"no posteriors" * 99}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is no file that convnet evaluate"):
            load(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "missing")


def test_weights_must_fit(asked: Predictions) -> None:
    for weights, text in (
        ([1.0], "1 numbers for 3 nets"),
        ([1.0, -1.0, 1.0], "at least 0"),
        ([0.0] * 3, "one above 0"),
    ):
        with pytest.raises(UsageError, match=text):
            rows(asked, weights)


def test_the_interval_is_wilsons() -> None:
    """It holds the rates p for which the observed one lies within 1.96 standard errors of p."""
    for errors, n in ((0, 50), (3, 100), (358, 1000), (50, 50)):
        low, high = interval(errors / n, n)
        for p in np.linspace(0.0001, 0.9999, 2000):
            inside = abs(errors / n - p) <= 1.959964 * np.sqrt(p * (1 - p) / n)
            assert inside == (low <= p <= high) or min(abs(p - low), abs(p - high)) < 1e-6


def test_the_sign_test_counts_all_outcomes() -> None:
    """The probability by writing down every fall of n coins."""
    truth = np.zeros(40, np.int64)
    for mended, broken in ((7, 2), (0, 5), (3, 3), (0, 0)):
        one, other = truth.copy(), truth.copy()
        one[:mended], other[mended : mended + broken] = 1, 1
        one[30:35] = other[30:35] = 1  # both wrong
        scores = [scores_of(("a", "b"), truth, ranks, ranks) for ranks in (one, other)]
        n, least = mended + broken, min(mended, broken)
        falls = [bin(fall).count("1") for fall in range(2**n)]
        extreme = sum(heads <= least for heads in falls) + sum(heads >= n - least for heads in falls)
        expected = pytest.approx(min(1.0, extreme / 2**n))
        assert sign_test(*scores) == (mended, broken, expected)


@pytest.fixture
def run(
    tmp_path: Path, photos: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    for seed in range(2):
        recipe = Recipe(**NET)
        pre = preprocess.of_recipe(recipe, photos.mean_picture, photos.statistics.mean_rgb)
        (tmp_path / f"run{seed}").mkdir()
        state = Checkpoint(recipe, pre, photos.classes, net(seed).state_dict())
        checkpoint.save(tmp_path / f"run{seed}" / "best.ckpt", state)

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (int(end.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_fuses_and_tabulates(
    run: Callable[..., tuple[int, str, str]], photos: Store, tmp_path: Path
) -> None:
    views = ("--views", "single,ten-crop")
    code, table, err = run("evaluate", "run0", "run1/best.ckpt", photos.path, *views, "--table", "--posteriors", "both")
    assert code == 0, err
    lines = table.splitlines()
    assert lines[0].split() == ["net", "S", "views", "Q", "top-1", "error", "95", "%", "top-5", "error", "95", "%", "p"]
    assert [line.split()[0] for line in lines[1:5]] == ["run0", "run0", "run1", "run1"]
    assert lines[-2].startswith("run0 + run1  32  ten-crop")
    assert lines[-1].startswith("test, n 100")
    code, again, _ = run("fuse", "both", "--table")
    assert (code, again) == (0, table)
    for i in range(2):
        assert run("evaluate", f"run{i}", photos.path, *views, "--posteriors", f"p{i}", "-q")[0] == 0
    code, again, _ = run("fuse", "p0", "p1", "--table")
    assert (code, again) == (0, table)
    code, out, _ = run("fuse", "p0", "p1", "--json")
    found = json.loads(out)
    assert found["rows"][-1]["net"] == "run0 + run1"
    assert found["top1_interval"][0] <= found["top1_error"] <= found["top1_interval"][1]
    assert len(found["confusion"]) == 3
    code, out, _ = run("fuse", "both", "--csv", "--weights", "3,1")
    assert out.splitlines()[-1].startswith("3 run0 + 1 run1,32,ten-crop,32,test,100,")
    code, out, err = run("evaluate", "run0", photos.path, "--views", "dense", "--scales", "512")
    assert code == 2
    assert "prepare the source with --encoding jpeg --size 32 --shorter-side 512" in err
    code, out, err = run("evaluate", photos.path)
    assert (code, "name a checkpoint and then a store" in err) == (2, True)


def test_looks_print_themselves() -> None:
    assert str(Look("dense", 384)) == "dense at 384"

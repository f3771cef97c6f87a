"""What a net begins with from another checkpoint: bitwise, by the paper's rule, tensor by tensor, and resumable."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.cli import app as cli
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.io import atomic
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.nets.layers import Net
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.training.init_from import init_from
from convnet.training.train import train
from runs import Notes
from thin import THINNER, new_thin_net, thinned

CLASSES = ("a", "b", "c", "d")
LENT = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"]
DIGITS = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=64"])
LINEAR = ["net_options.output=linear", "loss=softmax"]


def saved(path: Path, name: str, net: Net, classes: tuple[str, ...] = CLASSES, **options: int) -> Path:
    """A checkpoint of `net`, whose pixels were as the recipe of VGG-A makes them."""
    recipe = Recipe(name=name, net=name, net_options=options)
    scale = load_recipe("vgg_a").scale
    done = Preprocessing(size=256, pad=0, crop=net.input_size, channels="rgb", mean=None, scale=scale, offset=0.0)
    checkpoint.save(path, Checkpoint(recipe, done, classes, net.state_dict()))
    return path


def recipe_for(name: str) -> Recipe:
    return replace(load_recipe("vgg_a"), name=name, net=name, mean="none")


def marked(name: str, **options: int) -> Net:
    """A thin net in which every number says where it stands: none is like another net's."""
    net = new_thin_net(name, **options)
    with torch.no_grad():
        for i, tensor in enumerate(net.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 1000 * i)
    return net


@pytest.mark.parametrize("name", ["vgg_b", "vgg_c", "vgg_d", "vgg_e", "vgg16"])
def test_b_to_e_begin_with_the_papers_layers_of_a(tmp_path: Path, name: str) -> None:
    """Section 3.1: the first four convolutions of A and its fully connected layers; the others stay fresh."""
    a = marked("vgg_a")
    path = saved(tmp_path / "a.ckpt", "vgg11", a)
    net, fresh, theirs = new_thin_net(name), new_thin_net(name).state_dict(), a.state_dict()
    start = init_from(net, recipe_for(name), CLASSES, path)
    for key, tensor in net.state_dict().items():
        taken = key.rpartition(".")[0] in LENT
        assert torch.equal(tensor, theirs[key] if taken else fresh[key]), key
        assert not torch.equal(theirs.get(key, fresh[key] + 1), fresh[key]), key
    assert list(start.loaded) == [f"{layer}.{kind}" for layer in LENT for kind in ("weight", "bias")]
    assert set(start.loaded) | set(start.missing) == set(fresh)
    assert set(start.loaded) | set(start.unexpected) == set(theirs)
    assert (start.net, start.file, start.sha256) == ("vgg_a", "a.ckpt", atomic.sha256_file(path))
    assert start.missing["conv1_2.weight"] == "a.ckpt (vgg_a) has none"
    only = "only conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8 are loaded from a.ckpt (vgg_a)"
    assert start.missing["conv4_1.weight"] == start.unexpected["conv4_1.weight"] == only
    lines = list(start.lines())
    assert lines[0].startswith(f"begins with a.ckpt (vgg_a, sha256 {start.sha256}): 14 tensors loaded, ")
    for key in {*fresh, *theirs}:
        assert any(key in line for line in lines[1:]), f"{key} is not told"
    assert not start.warnings


@pytest.mark.parametrize(("name", "start"), [("vgg_d", "vgg_b"), ("vgg_e", "vgg_d"), ("vgg19", "vgg16")])
def test_the_notes_chain_takes_all_layers_of_the_net_before(tmp_path: Path, name: str, start: str) -> None:
    """VGG11, 13, 16, 19: each begins with all of the one before it; only the convolutions that it adds are fresh."""
    before = marked(start)
    net, fresh = new_thin_net(name), new_thin_net(name).state_dict()
    begun = init_from(net, recipe_for(name), CLASSES, saved(tmp_path / "a.ckpt", start, before))
    assert set(begun.loaded) == set(before.state_dict())
    added = {"vgg_d": "3", "vgg_e": "4", "vgg19": "4"}[name]
    assert {key.partition(".")[0] for key in begun.missing} == {f"conv{block}_{added}" for block in (3, 4, 5)}
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before.state_dict().get(key, fresh[key])), key


def test_the_same_net_takes_all_that_fits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", "vgg_a_bn", marked("vgg_a_bn"))
    net = new_thin_net("vgg_a_bn")
    start = init_from(net, recipe_for("vgg_a_bn"), CLASSES, path)
    assert (start.missing, start.unexpected) == ({}, {})
    for key, tensor in marked("vgg_a_bn").state_dict().items():  # running averages and counts too
        assert torch.equal(net.state_dict()[key], tensor), key


def test_other_classes_begin_with_a_fresh_last_layer_even_if_as_many(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", "googlenet", marked("googlenet"))
    net, fresh = new_thin_net("googlenet"), new_thin_net("googlenet").state_dict()
    start = init_from(net, recipe_for("googlenet"), ("a", "b", "d", "c"), path)
    last = [f"{layer}.{kind}" for layer in ("head1.fc2", "head2.fc2", "fc") for kind in ("weight", "bias")]
    assert start.missing == dict.fromkeys(last, "a.ckpt has other classes")
    assert start.unexpected == start.missing
    assert all(torch.equal(net.state_dict()[key], fresh[key]) for key in last)


def test_another_input_size_takes_all_but_fc6(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", "vgg_a", marked("vgg_a", input_size=64), input_size=64)
    net = new_thin_net("vgg_a", input_size=96)
    start = init_from(net, recipe_for("vgg_a"), CLASSES, path)
    assert start.missing == {"fc6.weight": "a.ckpt (vgg_a) has another shape: 128 x 64, not 128 x 144"}
    assert "fc7.weight" in start.loaded


@pytest.mark.parametrize(
    ("name", "start", "text"),
    [
        (
            "vgg_d",
            "vgg_e",
            "a.ckpt holds the net vgg_e; vgg_d can begin with a trained vgg_d or vgg_a or vgg_b: choose another",
        ),
        ("vgg_b_shallow", "vgg_a", "vgg_b_shallow can begin with a trained vgg_b_shallow: choose another"),
        ("vgg_d_bn", "vgg_a", "vgg_d_bn can begin with a trained vgg_d_bn: choose another"),
        ("vgg_a", "vgg_d", "vgg_a can begin with a trained vgg_a: choose another"),
    ],
)
def test_a_wrong_net_is_refused(tmp_path: Path, name: str, start: str, text: str) -> None:
    path = saved(tmp_path / "a.ckpt", start, new_thin_net(start))
    net = new_thin_net(name)
    with pytest.raises(UsageError, match=text):
        init_from(net, recipe_for(name), CLASSES, path)
    fresh = new_thin_net(name).state_dict()
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in net.state_dict().items())


def test_nothing_that_fits_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", "vgg_a", marked("vgg_a"))
    with thinned(2 * THINNER):
        narrower = create_model("vgg_b", num_classes=5, seed=0)
    with pytest.raises(
        UsageError, match=r"a\.ckpt: none of its tensors fits vgg_b, as a\.ckpt \(vgg_a\) has another shape"
    ):
        init_from(narrower, recipe_for("vgg_b"), ("a", "b", "c", "d", "e"), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.ckpt: damaged weights"):
        init_from(new_thin_net("vgg_a"), recipe_for("vgg_a"), CLASSES, path)


def test_pixels_that_the_weights_did_not_learn_from_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", "vgg_a", marked("vgg_a"))
    recipe = replace(recipe_for("vgg_a"), scale=1.0, mean="rgb", offset=0.5, name="mine")
    start = init_from(new_thin_net("vgg_a"), recipe, CLASSES, path)
    assert [warning.partition(" was ")[0] for warning in start.warnings] == [
        "the pixels' mean", "the pixels' scale", "the pixels' offset",
    ]  # fmt: skip
    assert start.warnings[1] == (
        "the pixels' scale was 0.0153846 where a.ckpt was trained, and is 1.0 in recipe mine: its weights fit the "
        "former; change it with --set scale=..."
    )


# In training


@pytest.fixture(scope="module")
def trained(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(with_settings(DIGITS, [*LINEAR, "epochs=1"]), digits, out)
    return out


def test_a_run_begins_with_them_and_resumes_without_the_file(digits: Store, trained: Path, tmp_path: Path) -> None:
    """Bitwise: the first checkpoint holds the start's weights, and a run that was stopped ends as one that was not."""
    start = tmp_path / "start.ckpt"
    start.write_bytes((trained / "best.ckpt").read_bytes())
    recipe = with_settings(DIGITS, [*LINEAR, "seed=5"])
    notes = Notes()
    train(recipe, digits, tmp_path / "whole", init_from=start, progress=notes)
    assert notes.lines[0].startswith("begins with start.ckpt (lenet5, sha256 ")
    assert notes.lines[0].endswith(": 14 tensors loaded, 0 missing, 0 unexpected")

    stop = Stop()
    with pytest.raises(Interrupted):
        train(recipe, digits, tmp_path / "stopped", init_from=start, progress=Notes(stop, 9), stop=stop)
    first = checkpoint.load(tmp_path / "stopped" / "last.previous.ckpt")
    assert first.position.step == 0
    theirs = checkpoint.load(start)
    assert all(torch.equal(first.weights[name], theirs.weights[name]) for name in theirs.weights)
    assert not any(bool(v.any()) for v in (first.velocity or {"": torch.ones(1)}).values())

    sha256 = atomic.sha256_file(start)
    start.unlink()
    train(recipe, digits, tmp_path / "stopped", resume=True)
    for name in ("last.ckpt", "best.ckpt", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    kept = checkpoint.load(tmp_path / "stopped" / "best.ckpt").provenance["start"]
    assert (kept["file"], kept["sha256"], kept["net"]) == ("start.ckpt", sha256, "lenet5")
    assert sorted(kept["taken"]) == sorted(theirs.weights)


def test_the_start_matters_and_what_is_fresh_is_the_recipes(digits: Store, trained: Path, tmp_path: Path) -> None:
    """From a linear output to the codes: all but the last layer is taken."""
    recipe = replace(DIGITS, epochs=1)
    train(recipe, digits, tmp_path / "fresh")
    train(recipe, digits, tmp_path / "begun", init_from=trained / "best.ckpt")
    first = {
        name: (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
        for name in ("fresh", "begun")
    }
    assert first["fresh"] != first["begun"]
    kept = checkpoint.load(tmp_path / "begun" / "best.ckpt").provenance["start"]
    assert kept["fresh"] == {"output.codes": "best.ckpt (lenet5) has none"}
    assert kept["left_over"] == dict.fromkeys(("output.weight", "output.bias"), "lenet5 has none")


def test_vgg_really_trains_from_a_to_b(photos: Store, tmp_path: Path) -> None:
    """Thin nets on pictures of 32 pixels, by the option input_size; a recipe, a checkpoint and the loop."""
    changes = ["size=32", "crop=32", "net_options.input_size=32", "batch=30", "epochs=2", "init=glorot", "patience=1"]
    with thinned(THINNER):
        recipe = with_settings(load_recipe("vgg_a"), changes)
        train(recipe, photos, tmp_path / "a")
        with pytest.raises(UsageError, match=r"holds the net vgg_a; vgg_e_bn can begin with a trained vgg_e_bn"):
            train(replace(recipe, net="vgg_e_bn"), photos, tmp_path / "e", init_from=tmp_path / "a" / "best.ckpt")
        assert not (tmp_path / "e").exists()
        train(replace(recipe, net="vgg_b"), photos, tmp_path / "b", init_from=tmp_path / "a" / "best.ckpt")
        kept = checkpoint.load(tmp_path / "b" / "best.ckpt")
        assert checkpoint.rebuild(kept).input_size == 32
    assert kept.provenance["start"]["taken"] == [f"{layer}.{kind}" for layer in LENT for kind in ("weight", "bias")]


def test_a_start_and_resume_exclude_each_other(digits: Store, trained: Path) -> None:
    with pytest.raises(UsageError, match=r"has weights already; leave out --start-from .*best\.ckpt, or --resume"):
        train(DIGITS, digits, trained, resume=True, init_from=trained / "best.ckpt")


def test_the_command(
    digits: Store, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [text for change in (*LINEAR, "epochs=1") for text in ("--set", change)]

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["convnet", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    common = ("--recipe", "lenet5_small", *changes)
    code, err = run(digits.path, *common, "--start-from", trained, "--out", "run")
    assert code == 0
    assert "begins with best.ckpt (lenet5, sha256 " in err
    code, err = run(digits.path, *common, "--start-from", "nowhere")
    assert (code, "nowhere: no such checkpoint" in err) == (2, True)
    code, err = run("--resume", "--out", "run", "--start-from", trained)
    assert (code, "a run has weights already" in err) == (2, True)
    with thinned(THINNER):
        path = saved(tmp_path / "a.ckpt", "vgg_a", create_model("vgg_a", num_classes=4, seed=0))
    code, err = run("digits", *common, "--start-from", path)
    assert code == 2
    assert "holds the net vgg_a; lenet5 can begin with a trained lenet5" in err
    assert not Path("stores").exists(), "no store is made for a run that can't begin"

"""Panels: what a net says of pictures, against a computation picture by picture; and how the bars are drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color, to_rgb
from PIL import Image
from torch import nn

from conftest import Run, square, trained_net
from convnet import device
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import DataError, UsageError
from convnet.evaluation.inference import infer
from convnet.evaluation.metrics import Scores
from convnet.evaluation.pictures import at_scales
from convnet.evaluation.seen import Seen, from_files, from_store, some
from convnet.evaluation.views import protocol
from convnet.recipe import Recipe
from convnet.visualize import panels as look
from convnet.visualize import plot
from convnet.visualize.labels import class_names
from convnet.visualize.panels import Panel, choose, draw_panels

CPU = device.choose("fp32", "cpu")


def small_net(classes: int = 3) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(128, classes))
    with torch.no_grad():
        net[-1].weight.mul_(0.1)  # so that probabilities lie between 0 and 1
    return net.eval()


def preprocessing(store: Store) -> Preprocessing:
    return preprocess.of_recipe(Recipe(size=32, crop=24), store.mean_picture, store.statistics.mean_rgb, 32)


def posterior_of(net: nn.Module, store: Store, i: int) -> np.ndarray:
    pixels = (square(store, "test", i).astype(np.float32) - store.mean_picture)[4:28, 4:28]
    with torch.no_grad():
        return net(torch.tensor(pixels.transpose(2, 0, 1).copy())[None])[0].double().softmax(0).numpy()


@pytest.fixture(scope="module")
def found(photos: Store) -> Scores:
    return trained_net(small_net(), preprocessing(photos)).evaluate(photos.split("test"))


def test_scores_equal_a_computation_picture_by_picture(photos: Store, found: Scores) -> None:
    net, labels = small_net(), photos.split("test").labels
    for i in range(100):
        row = posterior_of(net, photos, i)
        order = np.argsort(-row, kind="stable")
        assert found.top[i].tolist() == order.tolist()
        np.testing.assert_allclose(found.probabilities[i], row[order], atol=1e-6)
        assert found.of_label[i] == pytest.approx(row[labels[i]], abs=1e-6)
        assert found.ranks[i] == order.tolist().index(labels[i])


def test_their_scores_are_those_of_evaluate(photos: Store, found: Scores) -> None:
    scores = trained_net(small_net(), preprocessing(photos)).evaluate(photos.split("test"))
    assert found.top1 == scores.top1
    assert (found.top5, found.loss) == (scores.top5, scores.loss)
    assert np.array_equal(found.confusion, scores.confusion)
    net, ids = trained_net(small_net(), preprocessing(photos)), np.array([70, 3])
    part = net.evaluate(photos.split("test"), ids=ids, batch=1)
    np.testing.assert_allclose(part.probabilities, found.probabilities[[70, 3]], atol=1e-6)
    assert part.ids.tolist() == [70, 3]
    assert part.labels.tolist() == photos.split("test").labels[[70, 3]].tolist()


def test_panels_say_what_the_scores_say(photos: Store, found: Scores) -> None:
    how, split = preprocessing(photos), photos.split("test")
    ids = [5, 60, 99]
    for panel, i in zip(look(trained_net(small_net(), how), from_store(split, ids, how)), ids, strict=True):
        assert panel.classes.tolist() == found.top[i].tolist()
        np.testing.assert_allclose(panel.probabilities, found.probabilities[i], atol=1e-6)
        assert panel.right == found.ranks[i]
        assert panel.picture.name == split.keys[i]


def test_pictures_are_chosen_by_the_seed_or_by_confidence(found: Scores) -> None:
    wrong = set(np.flatnonzero(found.predicted != found.labels).tolist())
    assert 0 < len(wrong) < 100
    some_ids = choose(found, 12)
    assert choose(found, 12).tolist() == some_ids.tolist()
    assert choose(found, 12, seed=1).tolist() != some_ids.tolist()
    assert len(set(some_ids.tolist())) == 12
    assert not set(some_ids.tolist()) <= wrong
    errors = choose(found, 1000, "errors")
    assert sorted(errors.tolist()) == sorted(wrong)
    assert set(choose(found, 5, "errors").tolist()) <= wrong
    surest = sorted(wrong, key=lambda i: (-found.probabilities[i, 0], i))
    assert choose(found, 7, "confident errors").tolist() == surest[:7]
    assert found.mistakes().tolist() == surest
    with pytest.raises(UsageError, match="--n 0: at least 1 picture"):
        choose(found, 0)


def test_a_net_without_an_error_has_none_to_show(photos: Store) -> None:
    split = photos.split("test")
    right = trained_net(small_net(), preprocessing(photos)).evaluate(split)
    ids = np.flatnonzero(right.ranks == 0)
    only = trained_net(small_net(), preprocessing(photos)).evaluate(split, ids=ids)
    with pytest.raises(UsageError, match=f"all {len(ids)} pictures are right: there is no error to show"):
        choose(only, 3, "errors")


def test_a_sample_is_part_of_the_whole_and_the_same_again() -> None:
    assert some(1000, 50).tolist() == some(1000, 50).tolist()
    assert len(set(some(1000, 50, seed=3).tolist())) == 50
    assert some(7, 50).tolist() == list(range(7))
    with pytest.raises(UsageError, match="at least 1"):
        some(7, 0)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_what_is_shown_is_what_the_net_is_given(encoding: str, photos: Store, tmp_path: Path) -> None:
    """A store of larger pictures is scaled as in a test, and its pictures are those that `posteriors` cuts."""
    source = open_source(photos.path.parent / "source")
    side = 32 if encoding == "raw" else 40
    store = prepare(source, tmp_path / "store", size=32, shorter_side=side, encoding=encoding)
    how, split = preprocessing(photos), store.split("test")
    looks = protocol("single", how).looks
    rows = infer(small_net(), [at_scales(split.picture(i), side, looks) for i in range(9)], looks, how, CPU)
    with torch.no_grad():
        images = trained_net(small_net(), how).images(from_store(split, range(9), how))
        shown = small_net()(images).double().softmax(1)
    np.testing.assert_allclose(rows[looks[0]], shown.numpy(), atol=1e-6)


def test_a_store_that_cannot_give_the_nets_pictures_is_refused(digits: Store, photos: Store) -> None:
    with pytest.raises(UsageError, match="prepare the source with --size 32 --shorter-side 32"):
        from_store(digits.split("test"), [0], preprocessing(photos))


def test_files_are_seen_as_prepared(photos: Store) -> None:
    split = photos.split("test")
    files = [photos.path.parent / "source" / split.keys[i] for i in (0, 50)]
    for file, store in zip(from_files(files, preprocessing(photos)), from_store(split, [0, 50], preprocessing(photos)),
                           strict=True):  # fmt: skip
        assert np.array_equal(file.pixels, store.pixels)
        assert file.label is None


# drawing


def panel(label: int | None, classes: list[int], probabilities: list[float], name: str = "x.png") -> Panel:
    picture = Seen(name, np.zeros((8, 8, 3), np.uint8), label)
    return Panel(picture, np.array(classes), np.array(probabilities))


def test_the_right_class_has_the_red_bar() -> None:
    found = [panel(2, [0, 2, 1], [0.6, 0.3, 0.1]), panel(4, [0, 1, 2], [0.5, 0.3, 0.2]), panel(None, [3], [1.0])]
    axes = draw_panels(found, list("abcde")).axes
    bars = [each.patches for each in axes if each.patches]
    red = [[same_color(bar.get_facecolor()[:3], plot.RIGHT) for bar in each] for each in bars]
    assert red == [[False, True, False], [False, False, False], [False]]
    level, *others = to_rgb(plot.RIGHT)
    assert level > 0.6, "what is called red has little red"
    assert max(others) < 0.2, "what is called red looks like orange or pink"
    assert [round(float(bar.get_width()), 6) for bar in bars[0]] == [0.6, 0.3, 0.1]
    titles = [each.get_title() for each in axes if each.patches]
    assert titles == ["c", "e", "x.png"]


def test_names_are_inert_and_both_kinds_of_file_are_written(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "$x^$", "\x1b[31mred", "a\nb"]
    made = draw_panels([panel(0, [0, 1, 2, 3], [0.4, 0.3, 0.2, 0.1])] * 5, names)
    svg = plot.save(made, tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "$x^$" in svg
    assert "&lt;script&gt;" in svg
    with Image.open(plot.save(made, tmp_path / "a.png")) as png:
        assert png.size[0] == 4 * 1.75 * plot.DPI
    again = draw_panels([panel(0, [0, 1, 2, 3], [0.4, 0.3, 0.2, 0.1])] * 5, names)
    assert plot.encoded(again, "svg") == svg.encode(), "equal panels give equal bytes"


def test_class_names_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("n01 tench, Tinca tinca\nn02\n\nn03 wolf\n", encoding="utf-8")
    assert class_names(("n01", "n02", "n04"), file) == ("tench, Tinca tinca", "n02", "n04")
    assert class_names(("a\x1b[31m\n",), None) == ("a?[31m?",)
    with pytest.raises(DataError, match="names none of the net's classes, such as 'x'; a line is: CLASS its name"):
        class_names(("x",), file)
    with pytest.raises(DataError, match="No such file"):
        class_names(("x",), tmp_path / "none")
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        class_names(("x",), file)


# the command


def test_the_command(run: Run, untrained: Path, digits: Store, tmp_path: Path) -> None:
    code, out, err = run("show", "panels", untrained, digits.path, "-q")
    assert (code, out, err) == (0, "written: panels.png\n", "")
    code, out, _ = run("show", "panels", untrained, digits.path, "--most-confident-errors", "--n", 3, "--out", "a.svg")
    assert (code, out) == (0, "written: a.svg\n")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").count("<image") == 3
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save("p.png")
    assert run("show", "panels", untrained, "p.png", "p.png", "--out", "b.svg")[0] == 0
    text = (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert text.count("<image") == 2
    assert "p.png" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["NET", "STORE", "--out", "a.jpg"], "a.jpg: a picture's name ends in .png or .svg"),
        (["NET", "STORE", "--n", "0"], "at least 1"),
        (["NET", "STORE", "--split", "tests"], "unknown split 'tests': did you mean 'test'?"),
        (["NET", "none.png"], "none.png: no such file"),
        (["NET", "none.png", "--only-errors"], "errors are known of a store's pictures only"),
        (["none.ckpt", "STORE"], "none.ckpt: no such checkpoint"),
        (["NET", "OTHER"], "prepare a store with classes of the net"),
        (["NET", "STORE", "--names", "none.txt"], "none.txt: cannot be read"),
    ],
)
def test_its_errors(run: Run, untrained: Path, digits: Store, photos: Store, arguments: list[str], text: str) -> None:
    given = {"NET": untrained, "STORE": digits.path, "OTHER": photos.path}
    code, out, err = run("show", "panels", *(given.get(each, each) for each in arguments))
    assert code in (2, 3)
    assert out == ""
    assert text in err
    assert not list(Path().glob("*.png"))


def test_help_is_quick_and_gives_an_example(run: Run) -> None:
    for what in ("panels", "neighbours", "confusion", "classes"):
        code, out, _ = run("show", what, "--help")
        assert code == 0
        assert f"convnet show {what} " in out
        assert out.count("--") - out.count("--help") <= 12

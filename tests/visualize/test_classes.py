"""Findings about classes against loops over the pictures; planted copies are found, and nothing else is."""

import csv
import io
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import same_color
from PIL import Image, ImageEnhance, ImageOps

from conftest import Run, scores_of, square
from convnet.data.prepare import prepare
from convnet.data.preprocess import of_recipe
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.evaluation.metrics import Scores, interval
from convnet.recipe import Recipe
from convnet.visualize import classes as find
from convnet.visualize import near_duplicates, plot
from convnet.visualize.classes import classes_csv, draw_classes
from convnet.visualize.confusion import confusion_csv, draw_confusion, shares
from convnet.visualize.duplicates import LIKE, Duplicate, thumbnails


def made_up(n: int = 200, k: int = 7, seed: int = 0, empty: int | None = 4) -> Scores:
    """Scores of a net that is right in about half of the pictures; class `empty` has none."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, k, n)
    if empty is not None:
        labels[labels == empty] = 0
    logits = generator.normal(0, 3, (n, k))
    logits[np.arange(n), labels] += 3
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.argmax(order == labels[:, None], axis=1)
    classes = tuple(f"class {i}" for i in range(k))
    best, of_label = order[:, :5], rows[np.arange(n), labels]
    probabilities = np.take_along_axis(rows, best, 1)
    return Scores("single", "val", classes, np.arange(n), labels, best, probabilities, of_label, ranks)


def test_classes_pairs_and_doubts_equal_loops_over_the_pictures() -> None:
    scores = made_up()
    labels, said = scores.labels.tolist(), scores.predicted.tolist()
    found = find(scores, pairs=1000)
    for k, row in enumerate(found.rows):
        own = [i for i in range(200) if labels[i] == k]
        wrong = [i for i in own if said[i] != k]
        assert (row.k, row.n) == (k, len(own))
        if not own:
            assert (row.top1, row.top5, row.interval, row.confused_with) == (None, None, None, None)
            continue
        assert row.top1 == pytest.approx(len(wrong) / len(own))
        assert row.interval == interval(len(wrong) / len(own), len(own))
        assert row.top5 == pytest.approx(sum(k not in scores.top[i] for i in own) / len(own))
        counts = {j: sum(said[i] == j for i in wrong) for j in range(7)}
        assert row.confused_with == (max(counts, key=lambda j: counts[j]), max(counts.values()))
    right = {(i, j): [p for p in range(200) if labels[p] == i and said[p] == j]
             for i, j in product(range(7), repeat=2) if i != j}  # fmt: skip
    assert {(p.label, p.predicted): sorted(p.rows.tolist()) for p in found.pairs} == {
        a: b for a, b in right.items() if b
    }
    assert all(pair.count == len(pair.rows) for pair in found.pairs)
    assert [pair.count for pair in found.pairs] == sorted((len(rows) for rows in right.values() if rows), reverse=True)
    confidence = scores.probabilities[:, 0]
    assert all((np.diff(confidence[pair.rows]) <= 0).all() for pair in found.pairs)
    doubts = [i for i in range(200) if said[i] != labels[i] and confidence[i] >= 0.9 and scores.of_label[i] <= 0.01]
    assert doubts
    assert found.doubts.tolist() == sorted(doubts, key=lambda i: -confidence[i])
    assert found.duplicates is None


def test_a_net_without_mistakes_has_nothing_to_find() -> None:
    scores = made_up()
    right = np.flatnonzero(scores.ranks == 0)
    arrays = ("labels", "top", "probabilities", "of_label", "ranks")
    found = find(replace(scores, ids=right, **{name: getattr(scores, name)[right] for name in arrays}), [])
    assert (found.pairs, found.mistakes.tolist(), found.doubts.tolist()) == ((), [], [])
    assert all(row.confused_with is None for row in found.rows)


def test_the_tables_say_the_same_and_no_cell_is_a_formula() -> None:
    scores = made_up()
    names = ["=1+1", "a,b", 'c"d', "<b>", "x", "-", "@x"]
    rows = list(csv.reader(io.StringIO(confusion_csv(scores, names).decode())))
    assert rows[0] == ["true class", "'=1+1", "a,b", 'c"d', "<b>", "x", "'-", "'@x"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == scores.confusion.tolist()
    table = list(csv.DictReader(io.StringIO(classes_csv(find(scores).rows, names).decode())))
    for row, right in zip(table, find(scores).rows, strict=True):
        assert int(row["n"]) == right.n
        assert row["top1_error"] == ("" if right.top1 is None else str(right.top1))
        assert not row["taken_for"].startswith(("=", "-", "@"))


def test_shares_of_the_matrix() -> None:
    scores = made_up()
    for i, j in product(range(7), repeat=2):
        own = scores.labels == i
        share = (scores.predicted[own] == j).mean() if own.any() else 0
        assert shares(scores)[i, j] == pytest.approx(share)


@pytest.mark.parametrize("k", [7, 60])
def test_the_matrix_has_numbers_where_they_fit(k: int) -> None:
    scores = made_up(400, k, empty=None)
    axes, bar = draw_confusion(scores, scores.classes).axes
    image = axes.images[0].get_array()
    np.testing.assert_allclose(np.asarray(image), shares(scores))
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    if k == 60:
        assert not written
        return
    assert written == {(i, j): str(scores.confusion[i, j]) for i, j in np.argwhere(scores.confusion).tolist()}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(scores.classes)


def test_a_cell_of_a_large_matrix_is_several_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole matrix; the last row and column are of fewer classes. The table has what is not 0."""
    scores = made_up(400, 59, empty=None)
    monkeypatch.setattr("convnet.visualize.confusion.MATRIX", 25)
    monkeypatch.setattr("convnet.visualize.confusion.CELLS", 20)
    added = np.pad(scores.confusion, (0, 1)).reshape(20, 3, 20, 3).sum((1, 3))
    np.testing.assert_allclose(shares(scores), added / np.maximum(added.sum(1, keepdims=True), 1))
    made = draw_confusion(scores, scores.classes)
    assert any("a cell is 3 x 3 of 59 classes that follow each other" in text.get_text() for text in made.texts)
    head, *rows = csv.reader(io.StringIO(confusion_csv(scores, scores.classes).decode()))
    assert head == ["true class", "taken for", "pictures"]
    counted = [(i, j, scores.confusion[i, j]) for i, j in np.argwhere(scores.confusion).tolist()]
    assert rows == [[scores.classes[i], scores.classes[j], str(n)] for i, j, n in counted]


def test_21841_classes_have_no_matrix_of_all_pairs() -> None:
    """Which would be 3.8 GB; the picture's counts and shares are 2 x 8 MB."""
    labels = np.arange(0, 21_841, 7)
    names = tuple(f"n{k}" for k in range(21_841))
    scores = scores_of(names, labels, (labels * 5) % 21_841, np.ones(len(labels), np.int64))
    found = shares(scores)
    assert found.shape == (993, 993)
    assert found.sum() == pytest.approx(993)
    assert confusion_csv(scores, names).count(b"\n") == len(labels) + 1


# pictures in two splits


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str]]:
    """20 training pictures and 26 validation pictures, of which some are copies: {validation file: training file}."""
    folder = tmp_path_factory.mktemp("copies")
    generator = np.random.default_rng(0)

    def photo() -> Image.Image:
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, 64), Image.BICUBIC)
        return Image.blend(coarse, Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)), 0.2)

    train = [photo() for _ in range(20)]
    ways = {
        "same": lambda image: image,
        "jpeg": lambda image: image,  # saved as JPEG below
        "small": lambda image: image.resize((40, 40), Image.BICUBIC),
        "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        "mirror": ImageOps.mirror,
        "grey": lambda image: image.convert("L"),
    }
    planted = {}
    for split, label in product(("train", "val"), ("a", "b")):
        (folder / "source" / split / label).mkdir(parents=True)
    for i, image in enumerate(train):
        image.save(folder / "source" / "train" / "ab"[i % 2] / f"{i}.png")
    for k, (name, change) in enumerate(ways.items()):
        file = f"val/a/{name}.{'jpg' if name == 'jpeg' else 'png'}"
        change(train[k]).save(folder / "source" / file, quality=40)
        planted[file] = f"train/{'ab'[k % 2]}/{k}.png"
    for i in range(18):
        photo().save(folder / "source" / "val" / "b" / f"other{i}.png")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "source" / "train" / "a" / "flat.png")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "source" / "val" / "a" / "flat.png")
    Image.new("RGB", (64, 64), (10, 10, 100)).save(folder / "source" / "val" / "a" / "flat2.png")
    planted["val/a/flat.png"] = "train/a/flat.png"
    return prepare(open_source(folder / "source"), folder / "store", size=48), planted


def test_planted_copies_are_found_and_nothing_else(copies: tuple[Store, dict[str, str]]) -> None:
    store, planted = copies
    val, train = store.split("val"), store.split("train")
    duplicates = near_duplicates(val, train)
    assert {val.keys[pair.first]: train.keys[pair.second] for pair in duplicates} == planted
    assert len(duplicates) == len(planted)
    kinds = {val.keys[pair.first]: pair for pair in duplicates}
    assert {key for key, pair in kinds.items() if pair.exact} == {"val/a/same.png", "val/a/flat.png"}
    assert {key for key, pair in kinds.items() if pair.mirrored} == {"val/a/mirror.png"}
    assert [pair.exact for pair in duplicates] == [True, True, False, False, False, False, False]
    assert all(LIKE <= pair.correlation <= 1 for pair in duplicates)


def test_each_picture_has_the_one_that_is_most_like_it(copies: tuple[Store, dict[str, str]]) -> None:
    """Against numpy's correlation of every pair, mirrored or not."""
    store, _ = copies

    def small(split: str, i: int) -> np.ndarray:
        return np.asarray(Image.fromarray(square(store, split, i)).convert("L").resize((16, 16), Image.BOX), float)

    theirs = [small("train", i) for i in range(store.split("train").n)]
    found = {pair.first: pair for pair in near_duplicates(store.split("val"), store.split("train"), least=0.2)}
    assert len(found) > 15
    for i in range(store.split("val").n):
        one = small("val", i)
        pairs = [
            (np.corrcoef((one[:, ::-1] if mirrored else one).ravel(), other.ravel())[0, 1], j, mirrored)
            for j, other in enumerate(theirs) for mirrored in (False, True) if one.std() and other.std()
        ]  # fmt: skip
        best, j, mirrored = max(pairs, default=(0.0, 0, False))
        if i not in found:
            assert best < 0.2
        elif not found[i].exact:
            assert found[i].correlation == pytest.approx(best, abs=1e-5)
            assert (found[i].second, found[i].mirrored) == (j, mirrored)
    flat = np.full((20, 20, 3), 7, np.uint8)
    assert not thumbnails([flat]).any()


def test_only_the_chosen_pictures_are_looked_at(copies: tuple[Store, dict[str, str]]) -> None:
    store, _ = copies
    val, train = store.split("val"), store.split("train")
    everything = near_duplicates(val, train)
    ours, theirs = np.arange(0, val.n, 2), np.arange(0, train.n, 2)
    right = [pair for pair in everything if pair.first in ours and pair.second in theirs]
    assert 0 < len(right) < len(everything)
    assert near_duplicates(val, train, first_ids=ours, second_ids=theirs) == right


def test_a_product_in_blocks_is_the_whole(
    copies: tuple[Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = copies
    whole = near_duplicates(store.split("val"), store.split("train"), least=0.1)
    monkeypatch.setattr("convnet.visualize.duplicates.BLOCK", 5)
    blocks = near_duplicates(store.split("val"), store.split("train"), least=0.1)
    assert len(whole) > 20
    assert near_duplicates(store.split("val"), store.split("train"), first_ids=np.array([], np.int64)) == []
    assert [(t.first, t.second, t.exact, t.mirrored) for t in blocks] == [
        (t.first, t.second, t.exact, t.mirrored) for t in whole
    ]


# the sheet and the commands


def test_the_sheet_shows_what_was_found(photos: Store) -> None:
    scores = made_up(100, 3, empty=None)
    split, train = photos.split("test"), photos.split("train")
    found = find(scores, [Duplicate(0, 3, 1.0, True, False), Duplicate(1, 2, 0.98, False, True)])
    how = of_recipe(Recipe(size=32, crop=32), photos.mean_picture, None, 32)
    names = ["$x$", "<b>y</b>", "z" * 50]
    made = draw_classes(found, split, train, how, names)
    parts = made.subfigs
    assert [part.get_suptitle().split(",")[0].split(":")[0] for part in parts] == [
        "Top-1 error", "Most often confused", "Most confident mistakes", "In val and in train",
    ]  # fmt: skip
    bars = [bar.get_width() for bar in parts[0].axes[0].patches]
    np.testing.assert_allclose(bars, sorted((row.top1 for row in found.rows), reverse=True))
    shown = [axes for axes in parts[2].axes if axes.images]
    assert len(shown) == min(16, len(found.mistakes))
    framed = [axes for axes in shown if same_color(axes.spines["left"].get_edgecolor(), plot.COLOURS[1])]
    assert len(framed) == len(set(found.doubts.tolist()) & set(found.mistakes[:16].tolist()))
    pixels = np.asarray(shown[0].images[0].get_array())
    assert np.array_equal(pixels, square(photos, "test", int(found.mistakes[0])))
    assert len([axes for axes in parts[3].axes if axes.images]) == 4
    text = plot.encoded(made, "svg").decode()
    assert "<b>y" not in text
    assert "$x$" in text


def test_the_commands(run: Run, untrained: Path, digits: Store) -> None:
    code, out, err = run("show", "classes", untrained, digits.path, "-q", "--out", "c.svg")
    assert (code, err) == (0, "")
    assert out.endswith("written: c.svg\nwritten: c.csv\n")
    assert "labels to look at (the net gives another class at least 90% and the label at most 1%; a hint" in out
    assert "in test and train (the same bytes, or thumbnails that correlate by 0.97 or more):" in out
    rows = list(csv.DictReader(Path("c.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["class"] for row in rows] == list(digits.classes)
    assert sum(int(row["n"]) for row in rows) == 359
    code, out, err = run("show", "confusion", untrained, digits.path, "-q", "--split", "val")
    assert (code, out, err) == (0, "written: confusion.png\nwritten: confusion.csv\n", "")
    matrix = [row[1:] for row in csv.reader(Path("confusion.csv").read_text(encoding="utf-8").splitlines())][1:]
    assert np.array(matrix, int).sum() == 179
    assert np.array(matrix, int).sum(1).tolist() == np.bincount(digits.split("val").labels).tolist()
    code, out, _ = run("show", "classes", untrained, digits.path, "-q", "--split", "train", "--out", "t.svg")
    assert code == 0
    assert "in train and train" not in out

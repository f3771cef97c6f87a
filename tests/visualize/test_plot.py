"""Pictures in common: letters that no font has, labels that fit, classes that share a name, what the commands tell."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.transforms import Bbox

from conftest import Run, scores_of
from convnet.data.preprocess import of_recipe
from convnet.data.store import Store
from convnet.evaluation.seen import Seen
from convnet.recipe import Recipe
from convnet.visualize import plot
from convnet.visualize.classes import classes, draw_classes
from convnet.visualize.panels import Panel, draw_panels


def panel(names: list[str]) -> Panel:
    probabilities = np.linspace(0.5, 0.1, len(names))
    return Panel(Seen("x.png", np.zeros((8, 8, 3), np.uint8), 0), np.arange(len(names)), probabilities)


def test_letters_without_a_font_are_told_once_and_left_to_the_reader_of_an_svg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a 乾酪", "酪 b", "c"]
    monkeypatch.setattr(plot, "FONTS", ())
    with pytest.warns(plot.Unwritten, match=r"^no font here has 乾酪; boxes stand in their place: install one") as told:
        plot.save(draw_panels([panel(names)], names), tmp_path / "a.png")
    assert len(told) == 1
    assert "a 乾酪" in plot.save(draw_panels([panel(names)], names), tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_training_and_its_report_load_no_matplotlib() -> None:
    """Half a second of a command that takes a few: the page draws its curves itself."""
    code = "import sys, convnet.report, convnet.training.train; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_fonts_are_asked_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "FONTS", ("Nowhere Sans", "DejaVu Serif"))
    with plot.figure(1, 1):
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "DejaVu Serif"]


def test_a_command_tells_it_in_a_line(
    run: Run, untrained: Path, digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"{k} 乾{k}" for k in range(10)), encoding="utf-8")
    monkeypatch.setattr(plot, "FONTS", ())
    code, out, err = run("show", "confusion", untrained, digits.path, "-q", "--names", "names.txt")
    assert (code, out) == (0, "written: confusion.png\nwritten: confusion.csv\n")
    assert err.startswith("warning: no font here has 乾; boxes stand in their place")
    assert err.count("\n") == 1


def test_classes_that_share_their_first_name_are_told_apart(run: Run, untrained: Path, digits: Store) -> None:
    Path("names.txt").write_text("0 crane, bird\n1 crane, machine\n2 two, deux\n", encoding="utf-8")
    code, _, _ = run("show", "confusion", untrained, digits.path, "-q", "--names", "names.txt", "--out", "c.svg")
    assert code == 0
    text = Path("c.svg").read_text(encoding="utf-8")
    assert ">crane, bird<" in text
    assert ">crane, machine<" in text
    assert ">two<" in text
    assert "two, deux" in Path("c.csv").read_text(encoding="utf-8"), "the table has all synonyms"


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["L" * 80, "乾酪" * 40, "Mm" * 40])
def test_labels_of_mistakes_do_not_touch(name: str, photos: Store) -> None:
    labels = np.zeros(12, np.int64)
    said = np.ones(12, np.int64)
    scores = scores_of(photos.classes, labels, said, np.ones(12, np.int64))
    found = classes(replace(scores, probabilities=np.full((12, 1), 0.999), of_label=np.full(12, 0.001)))
    how = of_recipe(Recipe(size=32, crop=32), photos.mean_picture, None, 32)
    made = draw_classes(found, photos.split("test"), photos.split("train"), how, [name, name, name])
    plot.encoded(made, "svg")  # without a word of letters that have no font
    boxes = [axes.xaxis.label.get_window_extent() for axes in made.subfigs[2].axes if axes.get_xlabel()]
    assert len(boxes) == 12
    assert not any(Bbox.intersection(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    width = made.get_figwidth() * made.dpi
    assert all(box.x0 >= 0 and box.x1 <= width for box in boxes)


def test_the_list_of_commands_is_not_cut(run: Run) -> None:
    code, out, _ = run("show", "--help")
    assert code == 0
    assert "..." not in out.partition("Commands:")[2]
    assert "The training pictures nearest to a picture, by features and by pixels" in " ".join(out.split())

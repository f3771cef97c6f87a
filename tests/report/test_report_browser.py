"""The page in a real browser, opened from the disk: nothing is fetched, nothing fails, every part works."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from browser import MISSING, Browser, browser, until
from convnet.evaluation.metrics import Scores
from convnet.evaluation.trained_net import TrainedNet
from convnet.report import report
from convnet.visualize.curves import curves
from runs import SCRIPT, hostile_run

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CLASSES = (SCRIPT, "b\"'$x$", "\x1b[31mred, dead", *(f"class {k}" for k in range(3, 23)), "w" * 90)
SHOWN = (SCRIPT, "b\"'$x$", "?[31mred", *(f"class {k}" for k in range(3, 23)), "w" * 90)
MARGIN = 150  # pixels beside the matrix


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = hostile_run(tmp_path_factory.mktemp("browser"), CLASSES, 3, 4)
    report(made)
    return made


@pytest.fixture(scope="module")
def scores(run: Path) -> Scores:
    return TrainedNet.load(run, "cpu").evaluate(run.parent / "store", split="val")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def page(window: Browser, run: Path) -> Browser:
    window.open(run / "report.html", 1280)
    return window


def text(page: Browser, css: str) -> str:
    return str(page.run("return document.querySelector(arguments[0]).textContent.trim()", css))


def part(page: Browser) -> tuple[float, float, float]:
    """What is seen of the matrix: how many classes, from which column and row on."""
    found = page.run("return {...document.getElementById('matrix').dataset}")
    return float(found["seen"]), float(found["left"]), float(found["top"])


def place(page: Browser, i: int, j: int) -> tuple[float, float]:
    """Where the cell of the true class i and the said class j lies on the canvas, as shares of its width and height."""
    seen, left, top = part(page)
    width = page.run("return document.getElementById('matrix').clientWidth")
    margin = page.run(
        "const pen = document.createElement('canvas').getContext('2d'); pen.font = '13px system-ui, sans-serif';"
        "return Math.max(...arguments[0].map((name) => pen.measureText(name).width));", list(SHOWN),
    ) + 14  # fmt: skip
    margin = round(min(max(margin, 24), min(max(width * 0.22, 60), MARGIN)))
    cell = (width - margin) / seen
    return (margin + (j - left + 0.5) * cell) / width, (margin + (i - top + 0.5) * cell) / width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_the_disk_without_a_request_or_an_error(
    window: Browser, run: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    window.requests(), window.log("browser")
    window.open(run / "report.html", width, prefers_color_scheme=scheme)
    assert until(lambda: "seen" in window.run("return {...document.getElementById('matrix').dataset}"))
    asked = [url for url in window.requests() if not url.startswith("data:")]
    assert asked == [(run / "report.html").as_uri()]
    assert window.log("browser") == []
    assert window.run("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    ground = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light")
    assert window.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert window.run("return document.querySelectorAll('script').length") == 2
    window.save(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [320, 600, 700, 1000])
def test_nothing_scrolls_sideways_at_other_widths(window: Browser, run: Path, width: int) -> None:
    window.open(run / "report.html", width)
    assert window.run("return document.documentElement.scrollWidth") == width
    table = "const each = document.getElementById('table'); return [each.scrollWidth, each.parentElement.clientWidth]"
    wide, room = window.run(table)
    assert wide <= room, "a long name is broken, and the other columns are seen"


def told(scores: Scores, i: int, j: int) -> str:
    count, n = int(scores.confusion[i, j]), int(scores.confusion[i].sum())
    what = " is right" if i == j else f" taken for {SHOWN[j]}"
    return f"{SHOWN[i]}{what}: {count} of {n} ({100 * count / n:.1f} %)"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_cell_says_its_pair_and_count(window: Browser, run: Path, scores: Scores, width: int) -> None:
    window.open(run / "report.html", width)
    largest = tuple(int(k) for k in np.unravel_index(scores.confusion.argmax(), scores.confusion.shape))
    for i, j in [(0, 0), (0, 1), (2, 5), (23, 23), (23, 0), largest]:
        window.point("#matrix", *place(window, i, j))
        assert until(lambda i=i, j=j: text(window, "#cell") == told(scores, i, j)), text(window, "#cell")


def test_keys_move_and_zoom(page: Browser, scores: Scores) -> None:
    page.point("#matrix", *place(page, 3, 4), press=True)
    page.type("#matrix", "\ue015")  # down
    assert text(page, "#cell") == told(scores, 4, 4)
    page.type("#matrix", "\ue012\ue012")  # left, left
    assert text(page, "#cell") == told(scores, 4, 2)
    page.type("#matrix", "+")
    assert until(lambda: part(page)[0] == pytest.approx(16))
    page.type("#matrix", "-")
    assert until(lambda: part(page)[0] == 24)
    page.type("#matrix", "+++++++" + 30 * "\ue014")  # right, to the edge: the part that is seen follows
    assert text(page, "#cell") == told(scores, 4, 23)
    assert until(lambda: part(page)[:2] == (5, 19))
    page.type("#matrix", "0")
    assert until(lambda: part(page) == (24, 0, 0))


def test_the_matrix_zooms_and_moves(page: Browser, scores: Scores) -> None:
    page.click("#closer")
    assert until(lambda: part(page) == (16, 4, 4)), "around the middle"
    page.click("#farther")
    assert until(lambda: part(page) == (24, 0, 0))
    for _ in range(9):
        page.click("#closer")
    assert until(lambda: part(page)[0] == 5)
    seen, left, top = part(page)
    page.point("#matrix", 0.8, 0.8, to=(0.6, 0.5))
    assert until(lambda: part(page)[1] > left and part(page)[2] > top), "dragged to the left and up"
    i, j = int(part(page)[2]) + 1, int(part(page)[1]) + 1
    page.point("#matrix", *place(page, i, j))
    assert until(lambda: text(page, "#cell") == told(scores, i, j)), "hover knows what part is seen"
    page.click("#whole")
    assert until(lambda: part(page) == (24, 0, 0))
    box = page.run("const b = document.getElementById('matrix').getBoundingClientRect(); return [b.x, b.y, b.width]")
    at = {"x": box[0] + 0.9 * box[2], "y": box[1] + 0.9 * box[2], "deltaX": 0, "deltaY": -100}
    page.command("Input.dispatchMouseEvent", type="mouseWheel", modifiers=2, **at)
    assert until(lambda: part(page)[0] == pytest.approx(24 / 1.25))
    assert part(page)[1] > 2, "around the pointer"


def test_mistakes_alone(page: Browser, scores: Scores) -> None:
    wrong = scores.confusion * (1 - np.eye(24, dtype=int))
    sums = scores.confusion.sum(1, keepdims=True)
    k = int(np.diag(scores.confusion).argmax())

    def colour(i: int, j: int) -> list[int]:
        x, y = place(page, i, j)
        return list(page.run(
            "const c = document.getElementById('matrix'), w = c.width;"
            "return [...c.getContext('2d').getImageData(arguments[0] * w - 6, arguments[1] * w - 6, 1, 1).data]", x, y,
        ))  # fmt: skip

    empty = next((int(i), int(j)) for i, j in np.argwhere(scores.confusion == 0))
    assert scores.confusion[k, k] > 0
    assert colour(k, k) != colour(*empty)
    page.click("#only-mistakes")
    assert until(lambda: colour(k, k) == colour(*empty)), "a class that is right is as empty as any"
    assert text(page, "#most") == f"{100 * (wrong / sums).max():.0f} %"
    page.click("#only-mistakes")
    assert until(lambda: colour(k, k) != colour(*empty))
    assert text(page, "#most") == f"{100 * (scores.confusion / sums).max():.0f} %"


def names(page: Browser) -> list[str]:
    rows = page.run(
        "return [...document.querySelectorAll('#table tbody tr')].filter((r) => !r.hidden)"
        ".map((r) => r.cells[0].textContent)"
    )
    return list(rows)


def test_the_table_sorts_by_every_column(page: Browser, scores: Scores) -> None:
    assert names(page) == list(SHOWN)
    wrong = scores.confusion * (1 - np.eye(24, dtype=int))
    figures = {2: scores.confusion.sum(1), 3: [row["top1_error"] for row in scores.per_class()],
               4: [row["top5_error"] for row in scores.per_class()], 5: wrong.max(1)}  # fmt: skip
    for column, values in figures.items():
        button = f"#table th:nth-child({column}) button"
        of = dict(zip(SHOWN, np.asarray(values, float).tolist(), strict=True))
        page.click(button)
        assert [of[name] for name in names(page)] == sorted(of.values(), reverse=True)
        page.click(button)
        assert [of[name] for name in names(page)] == sorted(of.values())
        sorts = page.run("return [...document.querySelectorAll('#table th')].map((h) => h.getAttribute('aria-sort'))")
        assert sorts == ["ascending" if k == column - 1 else "none" for k in range(5)]
    page.click("#table th:nth-child(1) button")
    first = names(page)
    page.click("#table th:nth-child(1) button")
    assert names(page) == first[::-1]
    assert sorted(first) == sorted(SHOWN)


def test_the_table_shows_what_is_asked_for(page: Browser) -> None:
    page.type("#filter", "SCRIPT")
    assert names(page) == [SCRIPT]
    page.run("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input'))")
    page.type("#filter", "class 1")
    assert names(page) == [name for name in SHOWN if "class 1" in name]


def test_the_curves_say_their_values(page: Browser, run: Path) -> None:
    known = curves(run)
    for share, k in ((0.12, 0), (0.97, 1)):
        page.point(".chart:nth-child(2) svg", share, 0.5)
        assert until(lambda k=k: text(page, ".chart:nth-child(2) [data-epoch]") == f"epoch {known.epochs[k]}")
        assert text(page, ".chart:nth-child(2) [data-line='0']") == f"{100 * known.train_error[k]:.1f} %"
        assert text(page, ".chart:nth-child(2) [data-line='1']") == f"{100 * known.val_top1_error[k]:.1f} %"
    page.type(".chart:nth-child(1) svg", "\ue012")  # left
    assert text(page, ".chart:nth-child(1) [data-line='0']") == f"{known.train_loss[0]:.3f}"


def test_links_lead_to_their_sections_and_the_recipe_folds(page: Browser) -> None:
    links = page.run("return [...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href'))")
    assert len(links) == 10
    for link in links:
        assert page.run("return document.querySelector(arguments[0]) !== null", link), link
    page.click("nav a[href='#duplicates']")
    assert until(lambda: page.run("return document.querySelector('#duplicates').getBoundingClientRect().top < 900"))
    assert page.run("return document.querySelector('.choices').checkVisibility()")
    page.point("details summary", 0.05, 0.5, press=True)
    assert until(lambda: not page.run("return document.querySelector('.choices').checkVisibility()"))


def test_print_is_dark_on_white_whatever_the_screen_is(window: Browser, run: Path) -> None:
    window.open(run / "report.html", 800, type="print", prefers_color_scheme="dark")
    assert window.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.run("return getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not window.run("return document.querySelector('nav').checkVisibility()")
    assert window.run("return document.documentElement.scrollWidth") == 800
    corner = window.run(
        "return [...document.getElementById('matrix').getContext('2d').getImageData(400, 400, 1, 1).data]"
    )
    assert min(corner[:3]) > 60, "the matrix too"


def test_without_its_net_it_opens_too(window: Browser, run: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    window.log("browser")
    window.open(report(tmp_path), 390)
    assert window.log("browser") == []
    assert window.run("return document.querySelectorAll('section').length") == 2
    assert window.run("return document.documentElement.scrollWidth") == 390

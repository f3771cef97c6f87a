"""The docs as pages: built without a warning, nothing from another host, no dead link, a reference that holds all."""

import inspect
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import convnet
from browser import MISSING, browser, until
from convnet.cli.app import app
from convnet.recipe import Recipe, list_recipes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason='the docs are built by Zensical: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    shutil.copytree(DOCS, folder / "docs")
    build(folder)
    return folder / "site"


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    told = done.stdout + done.stderr
    assert (done.returncode, "No issues found" in told) == (0, True), told


class Page(HTMLParser):
    """What a page of HTML refers to, and what can be referred to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.ids, self.links, self.loaded = path, {"", "__top"}, set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        target = values.get("href") or values.get("src")
        if target and tag == "a":
            self.links.add(target)
        elif target:
            self.loaded.add(target)


def dead(folder: Path) -> Iterator[str]:
    """Every link of a folder's pages that leads to no file, or to no place of a page, and what comes from elsewhere."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        yield from (f"{path.name} loads {each}" for each in page.loaded if urlsplit(each).netloc)
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.name}: {link}: no such file"
            elif target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.name}: {link}: no such place"


def test_no_link_is_dead_and_nothing_comes_from_another_host(site: Path) -> None:
    (site / "404.html").unlink()  # its links begin at the server's root, wherever it is shown
    assert list(dead(site)) == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style
    assert len(list(site.rglob("*.html"))) == len(list(DOCS.rglob("*.md")))


def test_a_dead_link_and_another_host_are_noticed(tmp_path: Path) -> None:
    text = '<h2 id="a">A</h2><a href="b.html#b">1</a><a href="#b">2</a><a href="#a">3</a><a href="c.md">4</a>'
    (tmp_path / "a.html").write_text(text + '<script src="https://unpkg.com/x"></script>', encoding="utf-8")
    (tmp_path / "b.html").write_text('<a href="a.html#a">fine</a>', encoding="utf-8")
    assert sorted(dead(tmp_path)) == [
        "a.html loads https://unpkg.com/x",
        "a.html: #b: no such place",
        "a.html: b.html#b: no such place",
        "a.html: c.md: no such file",
    ]


def test_a_build_with_a_dead_link_fails(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason='the docs are built by Zensical: pip install -e ".[docs]"')
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A page\n\n[No page](none.md)\n", encoding="utf-8")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "convnet"\n', encoding="utf-8")
    with pytest.raises(AssertionError, match="page does not exist"):
        build(tmp_path)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_pages_fit_their_window_and_search_works_from_the_disk(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with browser(tmp_path_factory.mktemp("profile")) as window:  # a short path: a socket lies in it
        for page in ("index", "tutorial", "results", "reference/command", "reference/library"):
            for width in (390, 1280):
                window.open(site / f"{page}.html", width)
                assert window.run("return document.documentElement.scrollWidth") <= width, (page, width)
        window.open(site / "index.html", 1280)
        window.requests(), window.log("browser")
        window.click(".md-search__button")
        shadow = "[...document.querySelectorAll('*')].find(each => each.shadowRoot)?.shadowRoot"
        until(lambda: window.run(f"return {shadow}?.querySelector('input')"))
        window.run(f"{shadow}.querySelector('input').focus()")
        for letter in "occlusion":
            window.command("Input.dispatchKeyEvent", type="char", text=letter)
        assert until(lambda: "convnet show occlusion" in window.run(f"return {shadow}.textContent"))
        assert window.run(f"return {shadow}.querySelector('input').value") == "occlusion"
        assert window.log("browser") == []
        assert [each for each in window.requests() if not each.startswith(("file:", "data:"))] == []


def navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from navigated(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once() -> None:
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(navigated(config["project"]["nav"])) == sorted(pages)


def test_files_that_the_repositorys_pages_name_are_there() -> None:
    """Links of README and DESIGN, which the site doesn't have, and pages that text and help name as docs/NAME.md."""
    n = 0
    for path in (ROOT / "README.md", ROOT / "DESIGN.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (ROOT / target).is_file(), f"{path.name}: {target}"
            n += 1
    assert n > 20
    for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "convnet").rglob("*.py")]:
        for name in re.findall(r"\bdocs/([\w/-]+\.md)", path.read_text(encoding="utf-8")):
            assert (DOCS / name).is_file(), f"{path.name} names docs/{name}"


def test_the_reference_is_what_the_script_writes() -> None:
    pages = runpy.run_path(str(ROOT / "scripts/reference"))["pages"]()
    assert {path.name for path in REFERENCE.iterdir()} == pages.keys()
    for name, text in pages.items():
        assert (REFERENCE / name).read_text(encoding="utf-8") == text, f"{name} is old: run scripts/reference"


def sections(name: str) -> dict[str, str]:
    """{heading: the text below it} of a page of the reference."""
    text = (REFERENCE / name).read_text(encoding="utf-8")
    parts = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip([head.replace("\\", "") for head in parts[1::2]], parts[2::2], strict=True))


def test_the_reference_holds_every_public_name() -> None:
    held = sections("library.md")
    assert held.keys() >= {f"convnet.{name}" for name in convnet.__all__}
    shown = {name for name, value in vars(convnet.visualize).items() if not inspect.ismodule(value)}
    shown = {name for name in shown if not name.startswith("_")}
    assert len(shown) > 15
    assert sections("visualize.md").keys() >= {f"convnet.visualize.{name}" for name in shown}
    for kind in (convnet.Store, convnet.StoreDataset, convnet.TrainedNet):
        members = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
        methods = [name for name, value in members.items() if inspect.isroutine(value) and value.__doc__]
        assert methods or kind is convnet.StoreDataset
        assert held.keys() >= {f"{kind.__name__}.{name}" for name in methods}


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(how it is called, itself) of every command below a group."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def test_the_reference_holds_every_verb_with_every_flag() -> None:
    held, n = sections("command.md") | sections("show.md"), 0
    for name, command in commands(typer.main.get_command(app), "convnet"):
        for parameter in command.params:
            for word in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or ""]:
                assert word.rstrip(".").replace("|", "&#124;") in held[name], f"{name} lacks {word}"
                n += word.startswith("-")
    assert n > 200


def test_the_reference_holds_every_field_and_recipe() -> None:
    text = (REFERENCE / "recipe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \|", text, flags=re.MULTILINE)
    assert rows == [*Recipe.__dataclass_fields__, *list_recipes()]

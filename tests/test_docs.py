"""What the docs tell people to type: each command is parsed, each piece of Python compiled, and most of it is run."""

import glob
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import convnet
from convnet.cli.app import app
from exported import program_once
from thin import THIN, thinned

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
TUTORIALS = ("tutorial.md", "tutorial-python.md")
CLASSES = ("church", "dog", "parachute")


def name_of(page: Path) -> str:
    """README.md, training.md, reference/command.md."""
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


class Block(NamedTuple):
    """A block of code of a page: its language, "" where it has none, and its text."""

    page: str
    language: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, and those that are indented by four."""
    text, language = path.read_text(encoding="utf-8"), None
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("```"):
            if language is not None:
                yield Block(name_of(path), language, "\n".join(lines))
            language, lines = (line[3:].strip() if language is None else None), []
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            lines.append(line[4:])
        elif lines:
            yield Block(name_of(path), "", "\n".join(lines))
            lines = []


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block that begin with convnet, alone, after && or behind torchrun; comments cut off."""
    for line in block.text.replace("\\\n", " ").split("\n"):
        for part in re.split(r"&&|;", re.sub(r"\s#\s.*", "", line)):
            if match := re.match(r"\s*(?:torchrun .* -m )?(convnet\s.*)", part):
                yield re.sub(r"\s+", " ", re.split(r" [>|]", match[1])[0]).strip()


def all_commands() -> list[tuple[str, str]]:
    """(page, command) of every one; usage lines of the reference, whose language is text, are none."""
    return [(name_of(page), each) for page in PAGES for block in blocks(page) if block.language in ("", "bash")
            for each in commands(block)]  # fmt: skip


def mentioned() -> list[tuple[str, str]]:
    """(page, command) of every `convnet ...` within a sentence; what may be left out of it often is."""
    pairs = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```|^    .*?$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        pairs += [(name_of(page), re.sub(r"\s+", " ", each)) for each in re.findall(r"`(convnet [^`]+)`", text)]
    return pairs


@cache
def root() -> Any:
    return typer.main.get_command(app)


def parse(command: str) -> None:
    """As the command itself parses it, without doing it. Raises: what the command would end with."""
    verb: Any = root()
    words = shlex.split(command.replace(" [", " ").replace("] ", " ").removesuffix("]"))[1:]
    name = "convnet"
    while hasattr(verb, "commands"):
        verb.make_context(name, words[:1] if words[0].startswith("-") else [words[0]])
        if words[0].startswith("-"):
            return
        name, verb, words = f"{name} {words[0]}", verb.commands[words[0]], words[1:]
    verb.make_context(name, words)


def test_every_command_is_one() -> None:
    told, wrong = all_commands(), []
    for page, command in told:
        try:
            parse(command)
        except Exception as error:
            wrong.append(f"{page}: {command}: {error or type(error).__name__}")
    assert not wrong, "\n".join(wrong)
    assert len(told) > 150
    assert {page for page, _ in told} >= {"README.md", "scale.md", "tutorial.md", "reference/command.md"}


def test_every_command_within_a_sentence_is_one_as_far_as_it_goes() -> None:
    """What is left out of it may be: arguments, an option's value, what of show. What is there has to be right."""
    wrong, whole = [], 0
    for page, command in mentioned():
        try:
            parse(command)
            whole += 1
        except Exception as error:
            left_out = type(error).__name__ in ("MissingParameter", "BadOptionUsage", "IndexError")
            if not left_out and not re.search(r" [A-Z]{4,}| N\b", command):  # a word that stands for many
                wrong.append(f"{page}: {command}: {error or type(error).__name__}")
    assert not wrong, "\n".join(wrong)
    assert whole > 20


@pytest.mark.parametrize(
    "command",
    ["convnet trian", "convnet train --epohcs 3", "convnet train --epochs x", "convnet show mups a", "convnet lr run",
     "convnet predict", "convnet explain alexnet b c", "convnet doctor --net alexnet"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - of typer's kinds, whose homes differ by its version
        parse(command)


def test_every_piece_of_python_compiles() -> None:
    """Those of the reference are signatures, and docstrings' examples, which tests/test_doctests.py runs."""
    pieces = [block for page in PAGES for block in blocks(page) if block.language == "python"]
    pieces = [block for block in pieces if not block.page.startswith("reference/")]
    for block in pieces:
        compile(block.text, block.page, "exec")
    pages = "README.md features.md library.md retrieval.md store.md tutorial-python.md"
    assert {block.page for block in pieces} == {*pages.split()}


# Commands that aren't run here, each by the first reason that fits; any other one is. All are parsed.
NOT_RUN = {
    "a download, or a server": r"https://|s3://|vgg16\.torchvision",
    "files of others": r"^convnet import|weights/|bvlc|ILSVRC|fall11|ilsvrc|cifar10/|n03888257|imagenette\.index",
    "it trains for long": r"train( .*(vgg|alexnet_bn|alexnet_tanh|--recipe alexnet |--epochs 30)|$)|reproduce alexnet",
    "several processes: tests/training has them": r"--processes 2|^convnet train stores/photos --out runs/photos$",
    "a whole net: tests/retrieval has small ones": r"fit-classifier|photos\.ckpt",
    "more than 128 photos": r"--codes 128|photos\.index",
    "a training that goes on: tests/training has them": r"^convnet lr",
    "it measures": r"benchmark",
    "a store of whole photos": r"--views (multi|dense|VIEWS)|photos-jpeg|STORE|PHOTOS",
    "other runs, and parts": r"runs/(vgg|(a|b|digits|relu|alexnet-photos)\b)|vgg\.|--hub|--over|--part|merge|--ids|\.p",
}
PLACES = {  # what pages call the run and the store that the README's commands have made
    "runs/alexnet_small-photos": ("runs/photos", "runs/alexnet", "runs/fine_tuning-photos"),
    "runs/alexnet_small-photos/best.ckpt": ("alexnet.ckpt",),
    "stores/photos": ("stores/imagenette-256", "stores/photos-256"),
}


def left_out(command: str) -> str | None:
    """Why a command isn't run here; None: it is."""
    return next((reason for reason, pattern in NOT_RUN.items() if re.search(pattern, command)), None)


def photos(folder: Path) -> None:
    """What the pages suppose: photos/ with a folder for each class, and pictures to ask about."""
    generator = np.random.default_rng(0)

    def picture(name: str, channel: int) -> None:
        pixels = generator.integers(0, 120, (48, 40, 3), np.uint8)
        pixels[..., channel] += 130
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)

    for k, name in enumerate(CLASSES):
        for i in range(16):
            picture(f"photos/{name}/{i}.jpg", k if i % 4 else (k + 1) % 3)  # so that a net has something wrong
        picture(f"holiday/{name}.jpg", k)
        picture(f"holiday/2019/{name}.jpg", k)
    asked = "holiday/1.jpg stimuli/1.png stimuli/2.png stimuli/3.png stimuli/4.png beach.jpg dog.jpg a.jpg b.jpg c.jpg"
    for name in asked.split():
        picture(name, 0)
    (folder / "synset_words.txt").write_text("".join(f"{name} a {name}\n" for name in CLASSES), encoding="utf-8")


def words_of(command: str) -> list[str]:
    """The arguments as a shell gives them: *.jpg is the files that there are."""
    words = shlex.split(command)[1:]
    return [each for word in words for each in (sorted(glob.glob(word)) if "*.jpg" in word else [word])]


@pytest.fixture
def typed(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Does a command in a folder with photos, once for all pages; a server isn't waited for."""
    serve = pytest.importorskip("convnet.serve")
    monkeypatch.setattr(serve, "serve", lambda server, host, port, tell: tell(f"http://{host}:{port}/"))
    photos(tmp_path)
    done: set[str] = set()

    def type_it(command: str) -> None:
        verb = command.split()[1]
        if command in done and verb not in ("index", "search", "extract"):
            return
        if verb == "extract":  # as another page has made them
            shutil.rmtree("features", ignore_errors=True)
        if verb == "index" and not re.search(r"--add|--remove", command):
            Path("holiday.index").unlink(missing_ok=True)
        done.add(command)
        code, out, err = run(*words_of(command))
        assert (code, out != "") == (0, True), f"{command}\n{out}\n{err}"
        for made, names in PLACES.items():
            for name in names:
                if Path(made).is_dir() and not Path(name).exists():
                    shutil.copytree(made, name)
                elif Path(made).is_file() and not Path(name).exists():
                    shutil.copy(made, name)

    return type_it


def test_the_tutorial_runs_from_beginning_to_end(typed: Any, tmp_path: Path) -> None:
    told = [command for page, command in all_commands() if page == "tutorial.md"]
    assert len(told) == 10
    for command in told[:-1]:
        typed(command)
    assert told[-1] == "convnet train photos/"  # the README's, which the next test trains in small
    folder = tmp_path / "runs/cifar_26-photos"
    assert {"report.html", "best.ckpt", "summary.json"} <= {path.name for path in folder.iterdir()}


def test_the_tutorial_in_python_runs_from_beginning_to_end(typed: Any) -> None:
    told = [command for page, command in all_commands() if page == "tutorial-python.md"]
    for command in told:
        typed(command)
    names: dict[str, object] = {}
    pieces = [block for block in blocks(ROOT / "docs/tutorial-python.md") if block.language == "python"]
    assert (len(told), len(pieces)) == (1, 5)
    for block in pieces:
        exec(compile(block.text, block.page, "exec"), names)


def test_the_commands_of_the_other_pages_run(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thin AlexNet, on 48 photos of 48 x 40 pixels; each page finds what it supposes."""
    told = [(page, command) for page, command in all_commands() if page not in TUTORIALS]
    program_once(monkeypatch)
    y = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)  # of the four stimuli, another stage's
    pieces: dict[str, dict[str, Any]] = {"features.md": {"y": y}, "retrieval.md": {"convnet": convnet}, "store.md": {}}
    n = 0
    for path in PAGES:
        page = name_of(path)
        for command in [command for where, command in told if where == page and left_out(command) is None]:
            whole = re.match(r"convnet (nets|explain|reproduce|doctor)", command)
            with nullcontext() if whole else thinned(THIN):
                typed(command)
            n += 1
        if page in pieces:
            (piece,) = [block for block in blocks(path) if block.language == "python"]
            with thinned(THIN):
                exec(compile(piece.text, page, "exec"), pieces[page])
    assert n > 60
    used = {left_out(command) for _, command in told}
    assert used == {None, *NOT_RUN}, "a reason that nothing has any more"

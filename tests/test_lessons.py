"""The lessons: each has its form and three exercises that are checked; with -m lessons each runs from nothing."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lesson_driver
from lesson_driver import Cell, Exercise, cells, exercises, parsed, wrong

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "lessons").glob("*.py"))
README = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
IMPORTED = {"convnet", "matplotlib", "numpy", "torch"}
DATA = {"CIFAR-10": "cifar-10-batches-bin", "imagenette": "imagenette", "alexnet-bvlc-conv": "alexnet-bvlc-conv"}
SMALL = """# %% [markdown]
# ## Exercise 1: two and two
# What is it?

# %%
answer = 2 + 2
assert {check}, "count"
"""

lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def parts_of(path: Path) -> list[Cell]:
    return cells(path.read_text(encoding="utf-8"))


@lessons
def test_a_lesson_has_its_form(path: Path) -> None:
    """A title, then cells of text and code; code that parses; nothing imported that a user hasn't got."""
    assert re.fullmatch(r"\d_[a-z_]+", path.stem)
    parts = parts_of(path)
    assert re.match(rf"# {path.stem[0]}\. .+\?\n", parts[0].source), (
        "the first line is the lesson's number and question"
    )
    assert 80 <= path.read_text(encoding="utf-8").count("\n") <= 280
    for cell in parts:
        assert cell.source.strip(), f"line {cell.line}: an empty cell"
    nodes = [node for cell in parts if cell.kind == "code" for node in ast.walk(parsed(cell))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names <= IMPORTED
    private = [node.attr for node in nodes if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr)]
    assert private == []


@lessons
def test_a_lesson_ends_with_three_exercises(path: Path) -> None:
    parts = parts_of(path)
    solved = exercises(parts)
    assert [each.number for each in solved] == [1, 2, 3]
    assert solved[-1].code is parts[-1]
    for each in solved:
        assert each.answers(), f"exercise {each.number}: the cell doesn't set `answer`"
        assert each.checks(), f"exercise {each.number} isn't checked"
        inside = [node for node in ast.walk(each.tree()) if isinstance(node, ast.Assert)]
        assert len(inside) == len(each.checks()), "a check stands by itself, where it is tried with a wrong answer too"
        for check in each.checks():
            assert isinstance(check, ast.Assert)
            read = {node.id for node in ast.walk(check.test) if isinstance(node, ast.Name)}
            assert "answer" in read, f"line {check.lineno}: the check doesn't look at `answer`"
            assert check.msg is not None, f"line {check.lineno}: a check says what may be wrong"


def test_the_table_names_the_lessons() -> None:
    rows = re.findall(r"^\| \[(\d)\. [^\]]+\]\((\d_\w+\.py)\) \|", README, re.M)
    assert [name for _, name in rows] == [path.name for path in LESSONS]
    assert all(name.startswith(number) for number, name in rows)


@lessons
def test_jupytext_makes_a_notebook(path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext isn't installed; it is in the extra dev")
    notebook, parts = jupytext.read(path), parts_of(path)
    assert [cell.cell_type for cell in notebook.cells] == [cell.kind for cell in parts]
    assert [cell.source for cell in notebook.cells] == [cell.source.strip() for cell in parts]


# The driver that runs them


def test_the_driver_runs_cells_and_tries_a_wrong_answer(tmp_path: Path) -> None:
    path = tmp_path / "1_two.py"
    path.write_text(SMALL.format(check="answer == 4"), encoding="utf-8")
    assert lesson_driver.run(path) == 1
    path.write_text(SMALL.format(check="answer > 3"), encoding="utf-8")
    with pytest.raises(ValueError, match="exercise 1 takes 15 as well as 4"):
        lesson_driver.run(path)
    path.write_text(SMALL.format(check="answer == 5"), encoding="utf-8")
    with pytest.raises(AssertionError, match="count"):
        lesson_driver.run(path)


def test_what_is_no_lesson_is_told() -> None:
    with pytest.raises(ValueError, match="begins with a cell"):
        cells("import convnet\n")
    with pytest.raises(ValueError, match="line 2: markdown stands behind"):
        cells("# %% [markdown]\ntext\n")
    with pytest.raises(ValueError, match="line 2: no code follows exercise 1"):
        exercises(cells("# %% [markdown]\n# ## Exercise 1: none\n"))
    bare = Exercise(1, Cell("markdown", 1, ""), Cell("code", 1, "print(answer)\n"))
    assert not bare.answers()
    assert not bare.checks()


@pytest.mark.parametrize("answer", [3, 0.5, True, "cat", (1, 2), [0.0], {"a": 1}])
def test_a_wrong_answer_is_another_one_of_the_same_kind(answer: object) -> None:
    assert wrong(answer) != answer
    assert type(wrong(answer)) is type(answer)


# The lessons, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with the data that is at hand in data/: CIFAR-10 as it's published, the others as links."""
    place = tmp_path_factory.mktemp("lessons")
    (place / "data").mkdir()
    if root := os.environ.get("CONVNET_DATA"):
        for folder in Path(root).iterdir():
            (place / "data" / folder.name).symlink_to(folder)
        if (unpack := Path(root, "unpack-cifar10")).is_file():
            subprocess.run([sys.executable, unpack, place / "data"], check=True, stdout=subprocess.DEVNULL)
    return place


@pytest.mark.lessons
@lessons
def test_a_lesson_runs_from_nothing(path: Path, place: Path) -> None:
    """All its cells, and each exercise's check with a wrong answer too. It writes below runs/ alone."""
    for name, folder in DATA.items():
        if name in parts_of(path)[0].source and not (place / "data" / folder).is_dir():
            pytest.skip(f"CONVNET_DATA doesn't name a folder with {name}")
    environment = os.environ | {"MPLBACKEND": "Agg", "CONVNET_DATA": "data", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(Path(lesson_driver.__file__)), str(path)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=1200)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("3 exercises checked\n")
    assert {each.name for each in place.iterdir()} <= {"data", "runs"}
    assert list((place / "runs" / "lessons" / path.stem).glob("*.png")), "a lesson draws a picture"

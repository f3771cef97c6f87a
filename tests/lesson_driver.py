"""A lesson in jupytext's percent format, and a run of it that tries its exercises' checks with wrong answers as well.

    python lesson_driver.py lessons/1_digits.py

runs the cells in order, as a notebook does. After each exercise the checks are run again with an answer that isn't the
right one, and must fail: a check that lets everything pass teaches nothing.
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MARK = re.compile(r"^# %%(?: \[(markdown)\])?$", re.M)
EXERCISE = re.compile(r"^## Exercise (\d+): .+", re.M)


@dataclass(frozen=True)
class Cell:
    """`source` begins in line `line` of the file, the first being 1; of markdown it's the text without its #."""

    kind: str  # markdown, code
    line: int
    source: str


@dataclass(frozen=True)
class Exercise:
    """A question, and the code that answers and checks it."""

    number: int
    question: Cell
    code: Cell

    def checks(self) -> list[ast.stmt]:
        return [node for node in self.tree().body if isinstance(node, ast.Assert)]

    def answers(self) -> bool:
        """Whether the cell gives `answer` its value."""
        targets = [node.targets for node in self.tree().body if isinstance(node, ast.Assign)]
        return any(isinstance(target, ast.Name) and target.id == "answer" for each in targets for target in each)

    def tree(self) -> ast.Module:
        return parsed(self.code)


def cells(text: str) -> list[Cell]:
    """The cells of a lesson. Raises: ValueError for text before the first, or markdown that isn't a comment."""
    marks = list(MARK.finditer(text))
    if not marks or marks[0].start():
        raise ValueError("a lesson begins with a cell: # %% [markdown]")
    parts = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        source, line = text[mark.end() + 1 : end], text.count("\n", 0, mark.end()) + 2
        if mark[1]:
            lines = source.strip().split("\n")
            if wrong := [each for each in lines if each != "#" and not each.startswith("# ")]:
                raise ValueError(f"line {line}: markdown stands behind '# ': {wrong[0]!r}")
            source = "\n".join(each[2:] for each in lines)
        parts.append(Cell(mark[1] or "code", line, source))
    return parts


def exercises(parts: list[Cell]) -> list[Exercise]:
    """Each exercise with the cell that follows its question. Raises: ValueError when that is no code."""
    found = []
    for i, cell in enumerate(parts):
        if cell.kind == "markdown" and (match := EXERCISE.search(cell.source)):
            if i + 1 == len(parts) or parts[i + 1].kind != "code":
                raise ValueError(f"line {cell.line}: no code follows exercise {match[1]}")
            found.append(Exercise(int(match[1]), cell, parts[i + 1]))
    return found


def parsed(cell: Cell) -> ast.Module:
    """A cell's code, with the file's line numbers."""
    return ast.increment_lineno(ast.parse(cell.source), cell.line - 1)


def wrong(answer: Any) -> Any:
    """Another value of the same kind, far from `answer`: numbers grow, of several values the first one does.

    Raises: ValueError for a kind that no exercise has had yet.
    """
    match answer:
        case bool() | np.bool_():
            return not answer
        case int() | float() | np.number():
            return answer * 2 + 7
        case str():
            return f"not {answer}"
        case list() | tuple():
            return type(answer)([wrong(answer[0]), *answer[1:]])
        case dict():
            return {name: wrong(value) for name, value in answer.items()}
        case np.ndarray():
            return answer * 2 + 7 if answer.dtype != bool else ~answer
    if hasattr(answer, "detach"):  # a tensor, without loading torch for lessons that have none
        return answer * 2 + 7
    raise ValueError(f"no wrong answer is known beside {answer!r}")


def run(path: Path) -> int:
    """Runs a lesson; gives the number of exercises whose checks noticed a wrong answer."""
    text = path.read_text(encoding="utf-8")
    parts = cells(text)
    solved = {each.code.line: each for each in exercises(parts)}
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    for cell in parts:
        if cell.kind == "code":
            exec(compile(parsed(cell), path, "exec"), names)
        if (exercise := solved.get(cell.line)) is not None:
            must_fail(exercise, path, names)
    return len(solved)


def must_fail(exercise: Exercise, path: Path, names: dict[str, Any]) -> None:
    """Raises: ValueError when the checks let a wrong answer pass."""
    checks = compile(ast.Module(exercise.checks(), []), path, "exec")
    right, names["answer"] = names["answer"], wrong(names["answer"])
    try:
        exec(checks, names)
    except AssertionError:
        names["answer"] = right
        return
    raise ValueError(f"{path.name}: exercise {exercise.number} takes {names['answer']!r} as well as {right!r}")


if __name__ == "__main__":
    print(f"{run(Path(sys.argv[1]))} exercises checked")

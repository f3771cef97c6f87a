"""What we tell people to install is what pyproject.toml has, under the name that is ours."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnet import hardware

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHERS = {"triton"}  # torch's own dependency where it serves
PLACES = [
    *(ROOT / "convnet").rglob("*.py"),
    *(ROOT / "tests").glob("*.py"),
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
]
# as it stands in text, and in Python with the name put in
INSTALL = re.compile(r"pip install (?:-e )?(?:\"([^\"]+)\"|([\w.\-\[\]{},]+))")


def printed() -> Iterator[tuple[str, str]]:
    """(file, what is installed) of every `pip install` that someone may read and follow."""
    for path in PLACES:
        if path != Path(__file__):
            text = path.read_text(encoding="utf-8").replace("{hardware.DISTRIBUTION}", hardware.DISTRIBUTION)
            for match in INSTALL.finditer(text.replace("\\[", "[").replace("\\]", "]").replace("\\.", ".")):
                yield path.name, (match[1] or match[2]).rstrip(".,")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", each)[0] for each in requirements}


@pytest.mark.parametrize(
    "text", ['pip install "convnet[onnx]"', "pip install convnet", 'pip install -e ".[fastest]"', "pip install onx"]
)
def test_a_wrong_one_is_noticed(text: str) -> None:
    match = INSTALL.search(text)
    assert match
    assert not right(match[1] or match[2])


def right(what: str) -> bool:
    name, _, extras = what.partition("[")
    if extras and not {each.strip() for each in extras.rstrip("]").split(",")} <= EXTRAS.keys():
        return False
    known = names([each for group in (PROJECT["dependencies"], *EXTRAS.values()) for each in group])
    return name in ("", ".", PROJECT["name"]) or (not extras and name in known | OTHERS)


def test_every_printed_install_is_one_of_ours() -> None:
    told = list(printed())
    assert [each for each in told if not right(each[1])] == []
    assert {name for name, _ in told} >= {"README.md", "onnx.py", "doctor.py"}


def test_the_distributions_name_is_pyprojects() -> None:
    assert PROJECT["name"] == hardware.DISTRIBUTION
    assert PROJECT["scripts"].keys() == {"convnet"}


def test_python_m_convnet_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "convnet", "--version"], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, f"convnet {PROJECT['version']}\n")
    wrong = subprocess.run([sys.executable, "-m", "convnet", "trian"], capture_output=True, encoding="utf-8")
    assert wrong.returncode == 2

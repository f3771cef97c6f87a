"""The house rules that a machine can hold: who imports whom, the public names, no pickles, nothing printed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import convnet

PACKAGE = Path(convnet.__file__).parent
DESIGN = PACKAGE.parent / "DESIGN.md"


def rows() -> dict[str, int]:
    """{file or folder: row} as DESIGN.md lists them."""
    found, row = {}, -1
    block = DESIGN.read_text(encoding="utf-8").split("## The rows")[1].split("```")[1]
    for line in block.splitlines():
        if match := re.match(r"row (\d+)", line):
            row = int(match[1])
        elif match := re.match(r"  ([\w/]+(?:\.py|/))", line):
            found[match[1]] = row
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path


def row_of(name: str, table: dict[str, int]) -> int | None:
    """The row of `nets/alexnet.py`: its own, or that of the folder that holds it."""
    while name and name not in table:
        name = name.rstrip("/").rpartition("/")[0]
        name = f"{name}/" if name else ""
    return table.get(name)


def imports(path: Path) -> Iterator[str]:
    """The files of the package that a file imports when it is loaded (not inside functions)."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "convnet":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "convnet"]
        for name in names:
            parts = name.split(".")[1:]
            while parts and not (
                PACKAGE.joinpath(*parts).with_suffix(".py").is_file()
                or PACKAGE.joinpath(*parts, "__init__.py").is_file()
            ):
                parts.pop()
            if parts:
                target = PACKAGE.joinpath(*parts)
                yield "/".join(parts) + (".py" if target.with_suffix(".py").is_file() else "/__init__.py")


def test_every_file_has_a_row_and_imports_only_from_its_own_or_rows_above() -> None:
    table, wrong, n_imports = rows(), [], 0
    for name, path in modules():
        if name == "__init__.py":
            continue
        own = row_of(name, table)
        if own is None:
            wrong.append(f"{name} has no row in DESIGN.md")
            continue
        for target in imports(path):
            if target == "__init__.py":
                continue
            n_imports += 1
            row = row_of(target, table)
            if row is None or row > own:
                wrong.append(f"{name} (row {own}) imports {target} (row {row})")
    assert not wrong, "\n".join(wrong)
    assert n_imports > 50


def test_every_row_names_a_file_that_exists() -> None:
    missing = [name for name in rows() if not (PACKAGE / name).exists()]
    assert not missing


def test_no_import_cycle() -> None:
    graph = {name: {t for t in imports(path) if t != name} for name, path in modules()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_is_unpickled_and_only_the_command_prints() -> None:
    for name, path in modules():
        text = path.read_text(encoding="utf-8")
        for forbidden in ("pickle.load", "weights_only=False", "allow_pickle=True", "eval(", "exec("):
            pattern = rf"(?<![\w.]){re.escape(forbidden)}"
            assert not re.search(pattern, text), f"{name} has {forbidden}"
        if not re.fullmatch(r"(cli(_\w+)?|terminal)\.py", name):
            assert not re.search(r"(?<![\w.])print\(", text), f"{name} prints"


def test_public_names() -> None:
    assert convnet.__all__ == ["__version__", "create_model", "features", "list_models", "response_norm", "trace"]
    for name in convnet.__all__:
        assert getattr(convnet, name) is not None


def test_no_file_is_longer_than_400_lines_and_no_function_than_80() -> None:
    for name, path in modules():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{name}: {node.name}"


TEXT = {"read_text", "write_text"}  # of a Path
STREAMS = {"open", "run", "Popen", "check_output"}


def leaves_the_encoding_to_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text without saying in which encoding: then the locale decides."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    options = {each.arg: each.value for each in call.keywords}
    if "encoding" in options or name not in TEXT | STREAMS:
        return False
    if name in TEXT or "text" in options or "universal_newlines" in options:
        return True
    modes = [each.value for part in call.args[1:] for each in ast.walk(part) if isinstance(each, ast.Constant)]
    return isinstance(call.func, ast.Name) and name == "open" and not any("b" in str(mode) for mode in modes)


def test_text_names_its_encoding() -> None:
    places = [path for folder in ("convnet", "benchmarks") for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert len(places) > 100
    for path in places:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not leaves_the_encoding_to_the_locale(node), f"{path}:{node.lineno}: {ast.unparse(node)}"

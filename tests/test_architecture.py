"""What the repository promises: imports go one way, dependencies are declared."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room imports only itself and the rooms to its left.
ROOMS = ("data_pipeline", "pretrain", "eval", "launch")


def _sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no code"
    return files


def _imports(file: Path) -> Iterator[tuple[int, ast.Import | ast.ImportFrom, list[str]]]:
    """Line, statement and absolute module names of every import, also of those inside functions."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield node.lineno, node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            yield node.lineno, node, [".".join((*base, *([node.module] if node.module else [])))]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "tests", "benchmarks"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in _sources(room)
        for line, _, names in _imports(file)
        for name in names
        if name.partition(".")[0] in forbidden
    ]
    assert not wrong


def test_the_model_folder_imports_nothing_else_of_this_project() -> None:
    # It is shipped beside weights as remote code, where only relative imports resolve.
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in _sources("pretrain/model")
        for line, node, names in _imports(file)
        for name in names
        if name.partition(".")[0] in ROOMS
        and not (
            isinstance(node, ast.ImportFrom) and node.level and name.startswith("pretrain.model")
        )
    ]
    assert not wrong


def test_the_builtin_eval_is_never_hidden() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for room in (*ROOMS, "tests")
        for file in _sources(room)
        for line, node, names in _imports(file)
        if isinstance(node, ast.Import) and any(name.partition(".")[0] == "eval" for name in names)
    ]
    assert not wrong, "write `from eval.x import y`"


_IMPORT_ALL_WITHOUT_TORCHVISION = """
import importlib.util, pkgutil, sys

class Guard:
    attempts = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            self.attempts.append(name)
            raise ModuleNotFoundError("something imports torchvision")

sys.meta_path.insert(0, Guard())
look = importlib.util.find_spec

def find_spec(name, package=None):  # asking whether it is there is not importing it
    return None if name.startswith("torchvision") else look(name, package)

importlib.util.find_spec = find_spec

for room in sys.argv[1:]:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        importlib.import_module(module.name)
        print(module.name)
assert not Guard.attempts, Guard.attempts
"""


@pytest.mark.slow
def test_every_module_imports_where_torchvision_must_not_be_imported() -> None:
    command = [sys.executable, "-c", _IMPORT_ALL_WITHOUT_TORCHVISION, *ROOMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "launch.cli" in done.stdout.split()


def test_no_file_mentions_torchvision_as_an_import() -> None:
    # Imports inside functions do not run when a module is imported.
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for room in (*ROOMS, "tests")
        for file in _sources(room)
        for line, _, names in _imports(file)
        if any(name.partition(".")[0] == "torchvision" for name in names)
    ]
    assert not wrong


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_distribution_is_declared() -> None:
    project = _project()["project"]
    declared = _names(project["dependencies"] + sum(project["optional-dependencies"].values(), []))
    distributions = importlib.metadata.packages_distributions()
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for room in ROOMS
        for file in _sources(room)
        for line, _, names in _imports(file)
        for name in names
        if (top := name.partition(".")[0]) not in ROOMS
        and top not in sys.stdlib_module_names
        and not declared & {_normal(distribution) for distribution in distributions.get(top, [top])}
    ]
    assert not wrong


def test_constraints_pin_every_direct_dependency() -> None:
    project = _project()
    required = project["project"]["dependencies"] + project["build-system"]["requires"]
    required += sum(project["project"]["optional-dependencies"].values(), [])
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line and line[0] != "#"
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {_normal(line.partition("==")[0]) for line in lines}
    assert _names(required) - {"glscl"} <= pinned
    assert "torch==2.13.0" in lines
    assert "torchvision" not in pinned

"""Rules for the whole repository, checked on its source text.

Rooms import in one direction, remote model code stands alone, torchvision is never imported, and
every dependency is declared and pinned.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Each room imports only itself and the rooms to its left.
ROOMS = ("data_pipeline", "pretrain", "eval", "launch")
# Floors inside each room, from the ground up. A file or folder imports itself and what stands on
# floors below it; what is on one floor does not import its neighbors.
FLOORS = {
    "data_pipeline": """
        errors files frames randomness processes
        sample order
        decode questions quarantine
        decode_video regions
        shards augment
        text positions importing scenes
        masking sources
        collate
        micro_batch
        workers
        loader
    """,
    "pretrain": """
        model ranking
        parallel
        objectives counts
        config
        config_file optim protocols utilization views validation
        run accumulate
        build step task resume export
        job planning
        loop
        __main__
    """,
    "eval": """
        metrics encoding
        questions
        results
        stages
        registry
        finetuning report
        finetune
        __main__
    """,
    "launch": """
        commands imports stage_docs
        evaluation
        cli
        demo
    """,
}
# A result names its stage, and is measured, checked and compared by that stage's own functions.
LOOKED_UP_BY_NAME = {("eval.results", "eval.registry")}
# Stages that are another stage with something changed.
BUILT_ON = {"video_retrieval": "retrieval", "sugarcrepe": "preference", "vqa_prior": "vqa"}
# Commands: what `python -m` and `glscl` start. Library modules must not import a `__main__`.
COMMANDS = {"eval/finetune.py", "launch/cli.py"}


def _sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no code"
    return files


class _Import(NamedTuple):
    """A module that a file imports, by its absolute name, and the statement that does it."""

    file: Path
    statement: ast.Import | ast.ImportFrom
    name: str

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        path = self.file.relative_to(ROOT)
        return f"{path}:{self.statement.lineno} imports {self.name}"


def _imports(*folders: str) -> Iterator[_Import]:
    """Yield every import of every file in some folders, including those inside functions."""
    for folder in folders:
        for file in _sources(folder):
            yield from _imports_of(file)


def _imports_of(file: Path) -> Iterator[_Import]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(file, node, alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(file, node, _absolute_name(file, node))


def _absolute_name(file: Path, node: ast.ImportFrom) -> str:
    """Name the module of `from ..x import y`, where each dot but the first leads one folder up."""
    parts: list[str] = []
    if node.level:
        package = file.relative_to(ROOT).parts[:-1]
        parts.extend(package[: len(package) + 1 - node.level])
    if node.module:
        parts.append(node.module)
    return ".".join(parts)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "tests", "benchmarks"}
    wrong = [str(each) for each in _imports(room) if each.top in forbidden]
    assert not wrong


def _runtime_imports(file: Path) -> Iterator[_Import]:
    """Yield the imports of a file that run: not those for type checkers.

    `from a import b` names the module a.b if there is one, else a.
    """
    lines_for_types: set[int] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                lines_for_types.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    for each in _imports_of(file):
        if each.statement.lineno in lines_for_types:
            continue
        if isinstance(each.statement, ast.Import):
            yield each
            continue
        for alias in each.statement.names:
            inner = ROOT.joinpath(*each.name.split("."), alias.name)
            is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
            yield each._replace(name=f"{each.name}.{alias.name}") if is_module else each


def _unit(module: str) -> str:
    """Name the file or folder under its room: eval.results for eval.results.schema."""
    return ".".join(module.split(".")[:2])


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_is_on_a_floor(room: str) -> None:
    units = {_unit(_module(file)) for file in _sources(room)} - {room}
    listed = [f"{room}.{name}" for name in FLOORS[room].split()]
    assert sorted(listed) == sorted(units)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_inside_a_room_go_down(room: str) -> None:
    floor_of: dict[str, int] = {}
    for number, names in enumerate(FLOORS[room].strip().splitlines()):
        for name in names.split():
            floor_of[f"{room}.{name}"] = number
    wrong = []
    for file in _sources(room):
        above = _unit(_module(file))
        if above == room:
            continue  # the room's __init__ is on no floor
        for each in _runtime_imports(file):
            below = _unit(each.name)
            if below not in floor_of or below == above or (above, below) in LOOKED_UP_BY_NAME:
                continue
            if floor_of[below] >= floor_of[above]:
                wrong.append(str(each))
    assert not wrong


def test_a_stage_imports_no_stage_except_the_one_it_is_built_on() -> None:
    wrong = []
    for file in _sources("eval/stages"):
        stage = file.relative_to(ROOT / "eval" / "stages").parts[0]
        allowed = {stage, BUILT_ON.get(stage)}
        for each in _runtime_imports(file):
            other = each.name.removeprefix("eval.stages.").partition(".")[0]
            if each.name.startswith("eval.stages.") and other not in allowed:
                wrong.append(str(each))
    assert not wrong


def test_only_the_section_of_a_stage_in_the_report_imports_that_stage() -> None:
    wrong = []
    for file in _sources("eval/report"):
        is_section = file.parent.name == "stages"
        for each in _runtime_imports(file):
            # With a dot after both, so that `vqa` does not allow `vqa_prior`.
            of_its_stage = f"{each.name}.".startswith(f"eval.stages.{file.stem}.")
            if each.name.startswith("eval.stages.") and not (is_section and of_its_stage):
                wrong.append(str(each))
    assert not wrong


def test_no_library_module_imports_a_main_module() -> None:
    wrong = []
    for room in ROOMS:
        for file in _sources(room):
            if str(file.relative_to(ROOT)) in COMMANDS or file.name == "__main__.py":
                continue
            for each in _runtime_imports(file):
                if each.name.endswith(".__main__"):
                    wrong.append(str(each))
    assert not wrong


def test_the_model_folder_imports_nothing_else_of_this_project() -> None:
    # It is shipped beside weights as remote code, where only relative imports resolve.
    wrong = []
    for each in _imports("pretrain/model"):
        is_relative = isinstance(each.statement, ast.ImportFrom) and each.statement.level > 0
        stays_inside = is_relative and each.name.startswith("pretrain.model")
        if each.top in ROOMS and not stays_inside:
            wrong.append(str(each))
    assert not wrong


def test_the_builtin_eval_is_never_hidden() -> None:
    wrong = []
    for each in _imports(*ROOMS, "tests"):
        if isinstance(each.statement, ast.Import) and each.top == "eval":
            wrong.append(str(each))
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

# Asking whether torchvision is installed is not importing it: transformers asks.
def find_spec(name, package=None):
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
    wrong = [str(each) for each in _imports(*ROOMS, "tests") if each.top == "torchvision"]
    assert not wrong


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _names(requirements: list[str]) -> set[str]:
    """Names of requirements such as `torch==2.13.0`, without their versions."""
    return {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def _normal(name: str) -> str:
    """Spell a distribution as package indexes compare it: PyYAML and pyyaml are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_distribution_is_declared() -> None:
    project = _project()["project"]
    declared = _names(project["dependencies"] + sum(project["optional-dependencies"].values(), []))
    distributions = importlib.metadata.packages_distributions()
    wrong = []
    for each in _imports(*ROOMS):
        if each.top in ROOMS or each.top in sys.stdlib_module_names:
            continue
        # Several distributions can hold one module, and one that is not installed is named like it.
        names = {_normal(name) for name in distributions.get(each.top, [each.top])}
        if not declared & names:
            wrong.append(str(each))
    assert not wrong


def test_constraints_pin_every_direct_dependency() -> None:
    project = _project()
    required = project["project"]["dependencies"] + project["build-system"]["requires"]
    required += sum(project["project"]["optional-dependencies"].values(), [])
    lines = []
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            lines.append(line)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {_normal(line.partition("==")[0]) for line in lines}
    assert _names(required) - {"glscl"} <= pinned
    assert "torch==2.13.0" in lines
    assert "torchvision" not in pinned

"""The command line as a person meets it: one clear line for each mistake, the promised exit codes.

Commands run in this process; those whose process itself is tested (its exit code, what it imports,
a reader that goes away) run in one of their own.
"""

import errno
import inspect
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from launch.cli import main, parser
from tests.ranks import Finished

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "data scenes",
    "data import coco",
    "data index",
    "data verify",
    "data order",
    "data tokenizer",
    "pretrain",
    "finetune",
    "eval retrieval",
    "eval video-retrieval",
    "eval verify",
    "compare",
    "eval align",
    "eval sugarcrepe",
    "eval winoground",
    "eval zero-shot",
    "explain",
    "export",
    "convert",
    "report",
)


def _glscl(*arguments: object) -> Finished:
    """Run a command in this process."""
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        exit_code = main([str(argument) for argument in arguments])
    return Finished(exit_code, stdout.getvalue(), stderr.getvalue())


def _results(*arguments: object) -> dict:
    """Run a command that must succeed and return its last line, which is JSON."""
    done = _glscl(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _refused(exit_code: int, *arguments: object) -> str:
    """Run a command that must fail, and return the one line it prints."""
    done = _glscl(*arguments)
    assert done.exit_code == exit_code, done.stderr
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training split of 24 scenes and a validation split of 6."""
    folder = tmp_path_factory.mktemp("data")
    counts = ("--train", 24, "--val", 6, "--test", 0, "--novel", 0)
    made = _results("data", "scenes", folder, *counts, "--size", 64)
    assert made["samples"] == {"train": 24, "val": 6}
    return folder


def test_scenes_may_be_clips(tmp_path: Path) -> None:
    counts = ("--train", 2, "--val", 0, "--test", 0, "--novel", 0)
    _results("data", "scenes", tmp_path, "--video", *counts, "--size", 48)
    manifest = json.loads((tmp_path / "train" / "dataset.json").read_text())
    assert manifest["fields"] == {"json": 2, "mp4": 2}
    _results("data", "verify", tmp_path / "train", "--decode")


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the training split, for tests that damage it."""
    for file in (data / "train").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    look = """
import sys
from launch.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = ("torch", "transformers", "accelerate", "numpy", "cv2", "yaml")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert command in printed and "example:" in printed


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ((), "COMMAND"),
        (("data",), "COMMAND"),
        (("dta",), "dta"),
        (("data", "scenes", "out", "--trian", "5"), "--trian"),
        (("data", "scenes", "out", "--train", "many"), "--train"),
        (("data", "scenes", "out", "--train", "-1"), "--train"),
        (("data", "order", "somewhere", "--global-batch", "4"), "--seed"),
        (("data", "order", "--seed", "0", "--global-batch", "4"), "DIR"),
        (("eval", "retrieval", "--data", "x", "--out", "y"), "--model"),
        (
            ("eval", "retrieval", "--model", "m", "--data", "x", "--out", "y", "--score", "itc"),
            "itc",
        ),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_culprit(
    words: tuple[str, ...], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("glscl: error: ") and printed.err.count("\n") == 1
    assert culprit in printed.err


def test_the_exit_code_of_a_command_is_that_of_its_process() -> None:
    command = [sys.executable, "-m", "launch.cli", "data", "order", "somewhere", "--sed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("glscl: error: ") and "--sed" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("data", "index"),
        ("data", "verify"),
        ("data", "order", "--seed", "0", "--global-batch", "4"),
        ("data", "tokenizer", "--out", "nowhere", "--vocab-size", "300"),
    ],
)
def test_wrong_path_and_empty_folder_are_data_errors(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    wrong = tmp_path / "no_such_folder"
    assert "no_such_folder" in _refused(3, *words, wrong)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in _refused(3, *words, empty)


def test_a_shard_cut_in_half_is_named_by_every_command(copy: Path) -> None:
    shard = next(copy.glob("*.tar"))
    os.truncate(shard, shard.stat().st_size // 2)
    for command in ("index", "verify"):
        assert shard.name in _refused(3, "data", command, copy)
    assert shard.name in _refused(3, "data", "order", copy, "--seed", 0, "--global-batch", 4)


def test_verify_lists_the_damaged_shard_and_accepts_an_undamaged_data_set(copy: Path) -> None:
    _results("data", "verify", copy, "--decode")
    shard = next(copy.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[1024] ^= 255
    shard.write_bytes(content)
    done = _glscl("data", "verify", copy, "--json")
    assert done.exit_code == 3
    problems = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert problems and all(shard.name in problem for problem in problems)


def test_index_of_written_shards_finds_what_was_written(copy: Path) -> None:
    (copy / "dataset.json").unlink()
    assert _results("data", "index", copy)["samples"] == 24


def _ordered(*arguments: object) -> list[dict]:
    """Step and sample keys of each line that `glscl data order` prints."""
    done = _glscl("data", "order", *arguments)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_order_prints_a_json_line_a_step_and_ranks_share_the_global_batch(data: Path) -> None:
    batch = ("--seed", 7, "--global-batch", 4)
    order = (data / "train", *batch, "--start-step", 3, "--steps", 5)
    alone = _ordered(*order)
    assert [line["step"] for line in alone] == [3, 4, 5, 6, 7]
    of_ranks = (*order, "--world", 2, "--workers", 2)
    first, second = (_ordered(*of_ranks, "--rank", rank) for rank in (0, 1))
    for whole, left, right in zip(alone, first, second, strict=True):
        assert left["keys"] + right["keys"] == whole["keys"]


_RUN = "run: r\nsteps: 9\nseed: 5\nbatch: {image: 6}\n"


def test_order_takes_a_configuration_and_options_win_over_it(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    source = f"[{{path: {data / 'train'}, weight: 2}}, {{path: {data / 'val'}, weight: 1}}]"
    config.write_text(_RUN + f"data: {{train: {source}, tokenizer: t, lanes: 3}}\n")
    from_config = _ordered("--config", config, "--steps", 4)
    assert [len(line["keys"]) for line in from_config] == [6, 6, 6, 6]
    other_seed = _ordered("--config", config, "--steps", 4, "--seed", 6)
    assert len(other_seed) == 4
    assert other_seed != from_config


def test_order_takes_a_configuration_without_weights_and_drops_weights_of_other_data_sets(
    data: Path, tmp_path: Path
) -> None:
    train, val = data / "train", data / "val"
    for weight, name in (("", "plain"), (", weight: 1", "weighted")):
        config = tmp_path / f"{name}.yaml"
        sources = f"[{{path: {train}{weight}}}, {{path: {val}{weight}}}]"
        config.write_text(_RUN + f"data: {{train: {sources}, tokenizer: t}}\n")
    options = ("--seed", 5, "--global-batch", 6)
    plain, weighted = (
        ("--config", tmp_path / "plain.yaml"),
        ("--config", tmp_path / "weighted.yaml"),
    )
    assert _ordered(*plain) == _ordered(train, val, *options)
    assert _ordered(*weighted) == _ordered(train, val, *options, "--weights", 1, 1)
    assert _ordered(train, *weighted) == _ordered(train, *options)


def test_index_gives_a_name_that_tells_two_data_sets_apart(copy: Path) -> None:
    _results("data", "index", copy, "--name", "other")
    [line] = _ordered(copy, "--seed", 0, "--global-batch", 1)
    assert line["keys"][0].startswith("other/")
    assert "a/b" in _refused(2, "data", "index", copy, "--name", "a/b")


def test_the_parser_works_where_the_system_does_not_tell_processor_affinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert parser().parse_args(["data", "index", "dir"]).workers == os.cpu_count()


def test_order_ends_quietly_when_its_reader_has_seen_enough(data: Path) -> None:
    words = [sys.executable, "-m", "launch.cli", "data", "order", str(data / "train")]
    words += ["--seed", "0", "--global-batch", "4", "--steps", "100000"]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


class _FileOnAFullDisk(io.FileIO):
    """A file that fails to grow as on a full disk, until its descriptor leads to the null device.

    /dev/full does the same, where there is one.
    """

    def write(self, content: object) -> int:
        if os.path.samestat(os.fstat(self.fileno()), os.stat(os.devnull)):
            return super().write(content)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_can_be_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["data", "order", str(data / "train"), "--seed", "0", "--global-batch", "4"]
    with io.TextIOWrapper(io.BufferedWriter(_FileOnAFullDisk(tmp_path / "out", "w"))) as full:
        with redirect_stdout(full):
            exit_code = main(order)
        full.flush()  # as Python does when the process ends: it must not fail once more
    assert exit_code == 5
    assert capsys.readouterr().err == (
        "glscl: error: No space left on device: make room and run the same command again\n"
    )


def test_an_output_that_may_not_grow_is_one_line(data: Path, tmp_path: Path) -> None:
    limited = """
import resource, sys
from launch.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""
    order = ["data", "order", str(data / "train"), "--seed", "0", "--global-batch", "4"]
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", limited, *order, "--steps", "100"],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 3
    assert done.stderr == "glscl: error: File too large\n"
    assert (tmp_path / "out").stat().st_size == 4096


def test_tokenizer_is_written_and_another_command_can_load_it(data: Path, tmp_path: Path) -> None:
    from data_pipeline.text import Tokenizer

    out = tmp_path / "tokenizer"
    made = _results("data", "tokenizer", data / "train", "--out", out, "--vocab-size", 300)
    assert made == {"out": str(out), "vocab_size": 300}
    assert Tokenizer.load(out).vocab_size == 300


def test_a_typo_in_a_configuration_is_named_with_the_key_it_resembles(tmp_path: Path) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text("run: r\nsteps: 2\nsede: 1\ndata: {train: [{path: x}], tokenizer: t}\n")
    for words in (("pretrain", config), ("data", "order", "--config", config)):
        line = _refused(2, *words)
        assert "sede" in line and "seed" in line and "typo.yaml" in line


def test_a_missing_configuration_is_named() -> None:
    assert "no_such.yaml" in _refused(2, "pretrain", "no_such.yaml")


def test_wrong_folders_of_evaluation_and_report_are_named(tmp_path: Path) -> None:
    where = ("--model", tmp_path, "--out", tmp_path / "out")
    assert "no_such_data" in _refused(
        3, "eval", "retrieval", *where, "--data", tmp_path / "no_such_data"
    )
    assert "no_such_result" in _refused(
        3, "report", tmp_path / "no_such_result", "--out", tmp_path / "page.html"
    )


def test_defaults_of_the_command_line_are_those_of_the_functions() -> None:
    from data_pipeline.scenes.generate import generate

    options = vars(parser().parse_args(["data", "scenes", "out"]))
    compared = 0
    for name, parameter in inspect.signature(generate).parameters.items():
        if isinstance(parameter.default, int):
            assert options[name] == parameter.default, name
            compared += 1
    assert compared > 4

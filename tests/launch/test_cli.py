"""The command line as a person meets it: real processes, one clear line for each mistake, the promised exit codes."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main, parser

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


def _glscl(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, cwd=ROOT, text=True, timeout=120, **options)


def _refused(exit_code: int, *arguments: object) -> str:
    """The one line that a failing command says."""
    done = _glscl(*arguments)
    assert done.returncode == exit_code, done.stderr
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    done = _glscl(
        "data",
        "scenes",
        folder,
        "--train",
        24,
        "--val",
        6,
        "--test",
        0,
        "--novel",
        0,
        "--size",
        64,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == {"train": 24, "val": 6}
    return folder


def test_scenes_may_be_clips(tmp_path: Path) -> None:
    counts = [word for split in ("val", "test", "novel") for word in (f"--{split}", 0)]
    done = _glscl(
        "data", "scenes", tmp_path, "--video", "--train", 2, *counts, "--size", 48, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "train" / "dataset.json").read_text())["fields"] == {
        "json": 2,
        "mp4": 2,
    }
    assert _glscl("data", "verify", tmp_path / "train", "--decode").returncode == 0


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """The training split, to be damaged."""
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
print([name for name in ("torch", "transformers", "accelerate", "numpy", "cv2", "yaml") if name in sys.modules])
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
    said = capsys.readouterr().out
    assert command in said and "example:" in said


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
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("glscl: error: ") and said.err.count("\n") == 1
    assert culprit in said.err


def test_unknown_option_in_a_process_ends_with_2(tmp_path: Path) -> None:
    assert "--sed" in _refused(2, "data", "order", tmp_path, "--sed", 0)


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


def test_verify_lists_what_is_wrong_and_says_nothing_is_when_nothing_is(copy: Path) -> None:
    assert _glscl("data", "verify", copy, "--decode").returncode == 0
    shard = next(copy.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[1024] ^= 255
    shard.write_bytes(content)
    done = _glscl("data", "verify", copy, "--json")
    assert done.returncode == 3
    problems = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert problems and all(shard.name in problem for problem in problems)


def test_index_of_written_shards_finds_what_was_written(copy: Path) -> None:
    (copy / "dataset.json").unlink()
    done = _glscl("data", "index", copy, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == 24


def test_order_prints_a_json_line_a_step_and_ranks_share_the_global_batch(data: Path) -> None:
    order = (
        "data",
        "order",
        data / "train",
        "--seed",
        7,
        "--global-batch",
        4,
        "--start-step",
        3,
        "--steps",
        5,
    )
    alone = [json.loads(line) for line in _glscl(*order).stdout.splitlines()]
    assert [line["step"] for line in alone] == [3, 4, 5, 6, 7]
    ranks = [
        _glscl(*order, "--world", 2, "--rank", rank, "--workers", 2).stdout.splitlines()
        for rank in (0, 1)
    ]
    joined = [
        json.loads(first)["keys"] + json.loads(second)["keys"]
        for first, second in zip(*ranks, strict=True)
    ]
    assert joined == [line["keys"] for line in alone]


def test_order_takes_a_configuration_and_options_win_over_it(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    source = f"[{{path: {data / 'train'}, weight: 2}}, {{path: {data / 'val'}, weight: 1}}]"
    config.write_text(
        f"run: r\nsteps: 9\nseed: 5\nbatch: {{image: 6}}\ndata: {{train: {source}, tokenizer: t, lanes: 3}}\n"
    )
    from_config = _glscl("data", "order", "--config", config, "--steps", 4)
    assert from_config.returncode == 0, from_config.stderr
    keys = [json.loads(line)["keys"] for line in from_config.stdout.splitlines()]
    assert [len(step) for step in keys] == [6, 6, 6, 6]
    other_seed = _glscl("data", "order", "--config", config, "--steps", 4, "--seed", 6)
    assert other_seed.stdout != from_config.stdout
    assert len(other_seed.stdout.splitlines()) == 4


def test_order_takes_a_configuration_without_weights_and_drops_weights_of_other_data_sets(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def keys(*words: object) -> list[str]:
        assert main(["data", "order", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)["keys"]

    train, val = data / "train", data / "val"
    for weight, name in (("", "plain"), (", weight: 1", "weighted")):
        config = tmp_path / f"{name}.yaml"
        sources = f"[{{path: {train}{weight}}}, {{path: {val}{weight}}}]"
        config.write_text(
            f"run: r\nsteps: 9\nseed: 5\nbatch: {{image: 6}}\ndata: {{train: {sources}, tokenizer: t}}\n"
        )
    options = ("--seed", 5, "--global-batch", 6)
    assert keys("--config", tmp_path / "plain.yaml") == keys(train, val, *options)
    assert keys("--config", tmp_path / "weighted.yaml") == keys(
        train, val, *options, "--weights", 1, 1
    )
    assert keys(train, "--config", tmp_path / "weighted.yaml") == keys(train, *options)


def test_index_gives_a_name_that_tells_two_data_sets_apart(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "index", str(copy), "--name", "other"]) == 0
    assert main(["data", "order", str(copy), "--seed", "0", "--global-batch", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["keys"][0].startswith("other/")
    assert main(["data", "index", str(copy), "--name", "a/b"]) == 2


def test_the_parser_needs_no_processor_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_line_and_can_be_resumed(data: Path) -> None:
    with open("/dev/full", "w") as full:
        done = _glscl(
            "data", "order", data / "train", "--seed", 0, "--global-batch", 4, stdout=full
        )
    assert done.returncode == 5
    assert done.stderr == "glscl: error: No space left on device\n"


def test_tokenizer_is_written_and_another_command_can_load_it(data: Path, tmp_path: Path) -> None:
    done = _glscl(
        "data",
        "tokenizer",
        data / "train",
        "--out",
        tmp_path / "tok",
        "--vocab-size",
        300,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "out": str(tmp_path / "tok"),
        "vocab_size": 300,
    }
    assert (tmp_path / "tok" / "tokenizer.json").is_file()


def test_a_typo_in_a_configuration_is_named_with_what_was_meant(tmp_path: Path) -> None:
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

    taken = vars(parser().parse_args(["data", "scenes", "out"]))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(generate).parameters.items()
    }
    numbers = {name: value for name, value in defaults.items() if isinstance(value, int)}
    assert numbers and {name: taken[name] for name in numbers} == numbers

"""`python -m eval`: the configuration is checked before anything is loaded, and the result is the last line."""

import json
from pathlib import Path

import pytest

from eval.__main__ import main


def test_a_stage_runs_from_a_configuration(
    knowing_model: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {knowing_model}\ndata: {gallery}\nout: {tmp_path / 'out'}\nlimit: 3\n"
    )
    assert main(["retrieval", str(config), "--limit", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["images"] == 2
    assert (tmp_path / "out" / "samples.jsonl").is_file()


@pytest.mark.parametrize("stage", ["few-shot", "multi-label", "metric-learning"])
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_where_results_should_be_is_met_before_the_work(
    stage: str,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    Path("c.yaml").write_text(f"model: m\ndata: d\nbase: b\nout: {out}")
    assert main([stage, "c.yaml"]) == 2
    assert (
        f"out is {out}, and {tmp_path / 'taken'} is a file: choose a folder"
        in capsys.readouterr().err
    )


def test_an_error_of_the_system_is_one_line(
    knowing_model: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {knowing_model}\ndata: {gallery}\nout: {tmp_path / 'taken'}\nlimit: 2\n"
    )
    assert main(["retrieval", str(config)]) == 3
    assert capsys.readouterr().err == f"eval: error: {tmp_path / 'taken'}: File exists\n"


@pytest.mark.parametrize(
    ("arguments", "text", "code", "message"),
    [
        (["retrieval"], "", 2, "usage: python -m eval {align,"),
        (["retrievel", "c.yaml"], "", 2, "usage"),
        (
            ["retrieval", "c.yaml"],
            "model: m\ndata: d\nout: o\nrerank: 3",
            2,
            "unknown key rerank; did you mean rerank_k?",
        ),
        (["retrieval", "c.yaml"], "model: m\nout: o", 2, "data is missing"),
        (
            ["retrieval", "c.yaml"],
            "model: m\ndata: d\nout: o\nlimit: few",
            2,
            "limit: Input should be a valid integer",
        ),
        (["retrieval", "c.yaml"], "model: [", 2, "is not YAML"),
        (["retrieval", "c.yaml"], "- model", 2, "must hold a mapping"),
        (["retrieval", "other.yaml"], "", 2, "cannot read the configuration other.yaml"),
        (["retrieval", "c.yaml"], "model: m\ndata: d\nout: o", 3, "d is not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    text: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

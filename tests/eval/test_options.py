"""One dataclass declares a stage's options; signature, command line and YAML follow from it."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from data_pipeline.errors import UsageError
from eval.registry import stage_names, stage_options
from eval.results.options import ModelOptions, build_options, describe, option
from eval.results.run_stage import evaluator
from launch.evaluation import add_stage_options


@dataclass(frozen=True, kw_only=True)
class ToyOptions(ModelOptions):
    stage = "toy"
    about = "a stage for this test"
    example = "glscl eval toy"

    shot: tuple[int, ...] = option((1, 5), help="support images per class", metavar="K", at_least=1)
    mode: Literal["frozen", "finetune"] = option("frozen", help="what is trained")
    weight: float | None = option(None, help="weight of a loss (default: chosen)")
    submit: bool = option(False, help="also write a submission")


GIVEN = {"model": "m", "data": "d", "out": "o"}


def test_the_command_line_gives_the_same_options_as_python() -> None:
    parser = argparse.ArgumentParser()
    add_stage_options(parser, ToyOptions)
    words = ["--model", "m", "--data", "d", "--out", "o", "--shot", "2", "3", "--weight", "0.5"]
    parsed = vars(parser.parse_args([*words, "--submit", "--batch-size", "8"]))
    options = build_options(ToyOptions, parsed)
    assert options == build_options(
        ToyOptions, GIVEN | {"shot": [2, 3], "weight": 0.5, "submit": True, "batch_size": 8}
    )
    assert options.model == Path("m") and options.shot == (2, 3) and options.mode == "frozen"


def test_defaults_are_those_of_the_dataclass() -> None:
    parser = argparse.ArgumentParser()
    add_stage_options(parser, ToyOptions)
    assert vars(parser.parse_args(["--model", "m", "--data", "d", "--out", "o"])).keys() == {*GIVEN}
    assert "support images per class (default: 1 5)" in " ".join(parser.format_help().split())


def test_the_signature_of_evaluate_is_that_of_the_options() -> None:
    parameters = inspect.signature(evaluator(ToyOptions)).parameters
    assert list(parameters)[:4] == ["model", "data", "out", "shot"]
    assert parameters["mode"].default == "frozen"
    assert parameters["model"].default is inspect.Parameter.empty
    assert parameters["shot"].kind is inspect.Parameter.KEYWORD_ONLY


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(UsageError) as error:
        build_options(
            ToyOptions, {"model": "m", "data": "d", "shots": 1, "batch_size": 0}, "a.yaml"
        )
    assert str(error.value).split("; a.yaml: ") == [
        "a.yaml: unknown key shots; did you mean shot?",
        "out is missing",
        "batch_size is 0, must be at least 1",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "slow"}, r"mode: .*'frozen' or 'finetune' \(got 'slow'\)"),
        ({"shot": [1, 0]}, "shot is 0, must be at least 1"),
        ({"weight": "heavy"}, "weight: .*valid number"),
        ({"limit": 1.5}, "limit: .*valid integer"),
        ({"limit": "0"}, "limit is 0, must be at least 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_options(ToyOptions, GIVEN | wrong)


@pytest.mark.parametrize("name", stage_names())
def test_every_option_of_every_stage_has_a_help_text(name: str) -> None:
    options = stage_options(name)
    assert options.stage == name and options.about and options.example.startswith("glscl eval")
    for described in describe(options):
        assert described.help and not described.help.endswith("."), described.name


def test_an_unknown_stage_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown stage 'vqq'; choose one of align, "):
        stage_options("vqq")

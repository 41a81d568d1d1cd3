"""`python -m eval` checks its configuration before it loads anything and prints the result last."""

import json
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from eval.__main__ import main
from eval.registry import stage_names, stage_options
from eval.results.compare import compare
from eval.results.options import describe
from eval.results.schema import data_hash
from eval.stages.retrieval import evaluate


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


@pytest.mark.parametrize("stage", stage_names())
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_every_stage_meets_a_file_in_the_way_before_it_does_any_work(
    stage: str,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    required = [o.name for o in describe(stage_options(stage)) if o.required]
    Path("c.yaml").write_text(json.dumps(dict.fromkeys(required, "missing") | {"out": out}))
    assert main([stage, "c.yaml"]) == 2
    message = f"--out is {out}, but {tmp_path / 'taken'} is a file: choose a folder"
    assert message in capsys.readouterr().err


def test_a_result_is_replaced_only_when_asked(
    knowing_model: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {knowing_model}\ndata: {gallery}\nout: {tmp_path / 'out'}\nlimit: 3\nrerank_k: 0\n"
    )
    assert main(["retrieval", str(config)]) == 0
    assert main(["retrieval", str(config)]) == 2
    assert "already holds a result: choose another --out, or give --overwrite" in (
        capsys.readouterr().err
    )
    assert main(["retrieval", str(config), "--overwrite", "true"]) == 0


def test_part_of_a_data_set_never_passes_for_all_of_it(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    whole = evaluate(knowing_model, gallery, tmp_path / "whole", rerank_k=0)
    part = evaluate(knowing_model, gallery, tmp_path / "part", rerank_k=0, limit=5)
    assert part.data["hash"] == f"{whole.data['hash']}/first-5"
    assert part.protocol["limit"] == 5 and "limit/5" in part.flags
    with pytest.raises(DataError, match="different data"):
        compare(tmp_path / "whole", tmp_path / "part")
    everything = evaluate(knowing_model, gallery, tmp_path / "all", rerank_k=0, limit=1000)
    assert everything.data["hash"] == whole.data["hash"] and "limit/1000" not in everything.flags


def test_few_images_are_flagged(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    few = evaluate(knowing_model, gallery, tmp_path / "few", rerank_k=0, limit=5)
    assert [flag for flag in few.flags if flag.startswith("few_clusters/")]
    assert few.metric("text_to_image/R@1").clusters == 5


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


def test_part_of_a_data_set_never_has_the_hash_of_all_of_it(gallery: Path) -> None:
    manifest = Manifest.load(gallery)
    whole = data_hash(manifest, None)
    assert whole == data_hash(manifest, manifest.samples) == f"sha256:{manifest.digest}"
    assert data_hash(manifest, 2) == f"{whole}/first-2"

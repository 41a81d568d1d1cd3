"""Retrieval through the whole stage: a model that knows the gallery, broken models, every way of dividing the work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import MEMBERS, Store
from data_pipeline.shards.write import write_shards
from eval.encoding.features import encode_images, encode_texts, load
from eval.encoding.matching_scores import match_margins
from eval.results.schema import Result, read_records, read_result
from eval.stages.retrieval import evaluate
from eval.stages.retrieval.stage import metrics
from launch.cli import main
from pretrain.model import GLSCLModel
from pretrain.ranking import ranks

from .conftest import PICTURES, save_model

CAPTIONS = 5 * PICTURES


@pytest.fixture(scope="module")
def result(
    knowing_model: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("retrieval")
    return evaluate(knowing_model, gallery, out), out


def changed(model: Path, tokenizer: Path, out: Path, change) -> Path:
    loaded = GLSCLModel.from_pretrained(model)
    with torch.no_grad():
        change(loaded)
    return save_model(loaded, tokenizer, out)


def rewritten(gallery: Path, out: Path, change) -> Path:
    """Write the gallery again with other members: change(list of {extension: bytes})."""
    store = Store([Manifest.load(gallery)])
    members = [store.members(0, i, MEMBERS["image"]) for i in range(PICTURES)]
    write_shards(
        out, [(f"{i:03d}", m) for i, m in enumerate(change(members))], source={"name": "rewritten"}
    )
    return out


def flags(found: Result) -> list[str]:
    """Flags of what was computed; that training is unknown is flagged for every plain model folder."""
    assert found.data["overlap"].startswith("unknown: ")
    return [flag for flag in found.flags if not flag.startswith("overlap: unknown")]


def expected_ranks(folder: Path, stage: str) -> list[float]:
    found = [record[stage] for record in read_records(folder)]
    return [line["above"] + (line["tied"] + 1) / (line["tied_positives"] + 1) for line in found]


def test_a_model_that_knows_the_gallery_finds_its_pictures(result: tuple[Result, Path]) -> None:
    found = result[0].metric("text_to_image/R@1")
    assert found.value > 80
    assert found.ci95 is not None and found.ci95[0] <= found.value <= found.ci95[1]
    assert (found.n, found.unit, found.chance) == (
        CAPTIONS,
        "percent",
        pytest.approx(100 / PICTURES),
    )
    assert result[0].metric("image_to_text/R@1").n == PICTURES
    assert result[0].metric("text_to_image/reranked/R@1").value > 80
    assert flags(result[0]) == []


def test_permuted_pictures_bring_it_back_to_chance(
    result: tuple[Result, Path], knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    # A random permutation leaves one picture in its place on average; this one leaves exactly one.
    place = [0, *(1 + (i + 7) % (PICTURES - 1) for i in range(PICTURES - 1))]

    def permute(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        return [own | {"jpg": members[place[i]]["jpg"]} for i, own in enumerate(members)]

    permuted = rewritten(gallery, tmp_path / "permuted", permute)
    found = evaluate(knowing_model, permuted, tmp_path / "out")
    for name in ("text_to_image/R@1", "image_to_text/R@1", "text_to_image/reranked/R@1"):
        metric = found.metric(name)
        assert metric.value <= 3 * metric.chance
        assert metric.ci95[0] <= metric.chance
        assert metric.ci95[1] < result[0].metric(name).ci95[0]


def test_every_metric_follows_from_the_records(result: tuple[Result, Path]) -> None:
    written, out = result
    stored = read_result(out)
    assert stored.metrics == written.metrics
    assert metrics(read_records(out)) == stored.metrics
    for line in read_records(out):
        assert line["candidates"] == (
            PICTURES if line["direction"] == "text_to_image" else CAPTIONS
        )
        assert len(line["contrastive"]["top"]) == len(line["reranked"]["top"]) == 5


def test_records_name_the_best_candidates_in_order(result: tuple[Result, Path]) -> None:
    for line in read_records(result[1]):
        for stage in ("contrastive", "reranked"):
            ids, scores = zip(*line[stage]["top"], strict=True)
            assert list(scores) == sorted(scores, reverse=True)
            if line["direction"] == "text_to_image" and line[stage]["tied"] == 1:
                assert (ids[0] == line["image"]) == (line[stage]["above"] == 0)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_no_rank(
    result: tuple[Result, Path], knowing_model: Path, gallery: Path, tmp_path: Path, batch_size: int
) -> None:
    evaluate(knowing_model, gallery, tmp_path, batch_size=batch_size)
    for stage in ("contrastive", "reranked"):
        assert expected_ranks(tmp_path, stage) == expected_ranks(result[1], stage)


def test_pairs_score_as_the_plain_model_scores_them(knowing_model: Path, gallery: Path) -> None:
    loaded = load(knowing_model)
    images = encode_images(loaded, Manifest.load(gallery))
    captions = [several[0] for several in images.captions]
    texts = encode_texts(loaded, captions)
    image, text = np.divmod(np.arange(PICTURES * PICTURES), PICTURES)
    margins = match_margins(loaded, images, texts, image, text)
    rows = texts.row[text]
    with torch.inference_mode():
        fused = loaded.model.fuse(texts.tokens[rows], texts.mask[rows], images.tokens[image])
        logits = loaded.model.match(fused.pooled)
    np.testing.assert_allclose(margins, (logits[:, 1] - logits[:, 0]).numpy(), atol=2e-5)


def test_a_collapsed_encoder_reaches_chance_and_is_flagged(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """R2."""

    def collapse(model: GLSCLModel) -> None:
        model.contrastive_image_head[3].weight.zero_()
        model.contrastive_text_head[3].weight.zero_()

    found = evaluate(
        changed(knowing_model, tokenizer, tmp_path / "m", collapse),
        gallery,
        tmp_path / "o",
        rerank_k=0,
    )
    assert set(flags(found)) == {
        "degenerate_scores/text_to_image",
        "degenerate_scores/image_to_text",
    }
    for metric in found.metrics:
        assert metric.value == pytest.approx(
            100.0 if metric.name.endswith("tie_rate") else metric.chance
        )
    assert found.metric("text_to_image/R@1").bounds == (0.0, 100.0)


def test_a_constant_matching_head_is_flagged_and_counts_as_guessing_in_the_shortlist(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """R18."""
    model = changed(
        knowing_model, tokenizer, tmp_path / "m", lambda m: m.matching_head.weight.zero_()
    )
    found = evaluate(model, gallery, tmp_path / "o", rerank_k=4, score="itm")
    assert flags(found) == ["constant_match_scores"]
    first, both = found.metric("text_to_image/R@4"), found.metric("text_to_image/reranked/R@1")
    assert both.value == pytest.approx(first.value / 4)
    assert found.metric("text_to_image/reranked/tie_rate").value == pytest.approx(first.value)
    assert found.metric("text_to_image/tie_rate").value == 0.0


def test_a_shortlist_of_everything_ranks_by_the_head_alone(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """R16."""
    evaluate(knowing_model, gallery, tmp_path, rerank_k=CAPTIONS, score="itm")
    loaded = load(knowing_model)
    images = encode_images(loaded, Manifest.load(gallery))
    captions = [caption for several in images.captions for caption in several]
    texts = encode_texts(loaded, captions)
    text, image = np.divmod(np.arange(CAPTIONS * PICTURES), PICTURES)
    margins = match_margins(loaded, images, texts, image, text).reshape(CAPTIONS, PICTURES)
    np.testing.assert_allclose(
        expected_ranks(tmp_path, "reranked")[:CAPTIONS],
        ranks(margins, np.arange(CAPTIONS) // 5).expected,
    )


def test_a_shortlist_of_one_changes_nothing(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """R17."""
    evaluate(knowing_model, gallery, tmp_path, rerank_k=1)
    assert expected_ranks(tmp_path, "reranked") == expected_ranks(tmp_path, "contrastive")


def test_a_model_that_gives_nan_is_refused_with_the_sample(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """R3 and R4."""
    model = changed(
        knowing_model,
        tokenizer,
        tmp_path / "m",
        lambda m: m.image_projection.bias.fill_(float("nan")),
    )
    with pytest.raises(
        NumericsError, match=r"not finite for 20 of 20: scenes-test/test-000000\.tar/000000000"
    ):
        evaluate(model, gallery, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_copies_of_pictures_and_captions_tie_and_are_counted(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """R12."""
    doubled = rewritten(
        gallery, tmp_path / "doubled", lambda members: [members[i // 2] for i in range(PICTURES)]
    )
    found = evaluate(knowing_model, doubled, tmp_path / "o", rerank_k=PICTURES)
    assert (found.data["duplicate_images"], found.data["duplicate_texts"]) == (
        PICTURES // 2,
        CAPTIONS // 2,
    )
    for line in read_records(tmp_path / "o"):
        for stage in ("contrastive", "reranked"):
            assert line[stage]["tied"] == 2 * line[stage]["tied_positives"]


def test_one_picture_is_found(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    """R20 and R13."""
    found = evaluate(knowing_model, gallery, tmp_path, limit=1)
    assert found.metric("text_to_image/reranked/R@10").value == 100.0
    assert found.metric("text_to_image/R@1").ci95 == (100.0, 100.0)
    assert flags(found) == []


def test_one_pair_is_no_constant_head(knowing_model: Path, tmp_path: Path, jpeg: bytes) -> None:
    write_shards(
        tmp_path / "pair", [("a", {"jpg": jpeg, "txt": b"a red square"})], source={"name": "pair"}
    )
    assert flags(evaluate(knowing_model, tmp_path / "pair", tmp_path / "o")) == []


def test_a_head_that_looks_at_one_side_only_is_flagged(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """Its scores differ from text to text, and say nothing about which picture fits."""

    def ignore_pictures(model: GLSCLModel) -> None:
        model.image_projection.weight.zero_()

    found = evaluate(
        changed(knowing_model, tokenizer, tmp_path / "m", ignore_pictures), gallery, tmp_path / "o"
    )
    assert "constant_match_scores" in found.flags


def test_wrong_options_and_missing_data_are_refused(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="score is 'itc', must be one of itm, itm"):
        evaluate(knowing_model, gallery, tmp_path, score="itc")
    with pytest.raises(UsageError, match="rerank_k is -1"):
        evaluate(knowing_model, gallery, tmp_path, rerank_k=-1)
    with pytest.raises(UsageError, match="precision is 'fp8'"):
        evaluate(knowing_model, gallery, tmp_path, precision="fp8")
    with pytest.raises(UsageError, match="no model at"):
        evaluate(tmp_path / "nothing", gallery, tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        evaluate(knowing_model, tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="holds no sample"):
        evaluate(knowing_model, gallery, tmp_path, limit=0)


def test_folds_rank_each_part_by_itself(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    """COCO's 1K is five parts of its 5K."""
    whole = evaluate(knowing_model, gallery, tmp_path / "folds", folds=2)
    lines = list(read_records(tmp_path / "folds"))
    assert {line["candidates"] for line in lines} == {PICTURES // 2, CAPTIONS // 2}
    evaluate(knowing_model, gallery, tmp_path / "first", limit=PICTURES // 2)
    standing = [
        [
            (line["query"], line["contrastive"]["above"], line["reranked"]["above"])
            for line in several
        ]
        for several in (
            [line for line in lines if line["fold"] == 0],
            read_records(tmp_path / "first"),
        )
    ]
    assert standing[0] == standing[1]
    assert whole.metric("text_to_image/R@1").chance == pytest.approx(200 / PICTURES)
    with pytest.raises(UsageError, match="folds is 21, more than the 20 pictures"):
        evaluate(knowing_model, gallery, tmp_path / "o", folds=21)


def test_pictures_may_have_any_number_of_captions(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """R8: every picture counts once as a query, every caption once; mAP counts all of a picture's captions."""

    def unequal(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        counts = [1, 3, 7]
        found = []
        for i, own in enumerate(members):
            texts = (json.loads(own["json"])["captions"] * 2)[: counts[i % 3]]
            found.append({"jpg": own["jpg"], "json": json.dumps({"captions": texts}).encode()})
        return found

    found = evaluate(knowing_model, rewritten(gallery, tmp_path / "d", unequal), tmp_path / "o")
    assert found.metric("image_to_text/R@1").n == PICTURES
    assert found.metric("text_to_image/R@1").n == found.data["texts"] == 7 * 1 + 7 * 3 + 6 * 7
    assert {line["positives"] for line in read_records(tmp_path / "o")} == {1, 3, 7}
    assert 0 < found.metric("image_to_text/mAP").value <= 100
    alone = rewritten(
        gallery, tmp_path / "e", lambda members: [{"jpg": m["jpg"], "json": b"{}"} for m in members]
    )
    with pytest.raises(DataError, match=r"cannot be evaluated: .* has no caption"):
        evaluate(knowing_model, alone, tmp_path / "none")


def test_an_evaluation_from_kept_features_writes_the_same_files(
    result: tuple[Result, Path], knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    for name in ("first", "again"):
        evaluate(knowing_model, gallery, tmp_path / name, cache=tmp_path / "cache")
        assert (tmp_path / name / "samples.jsonl").read_bytes() == (
            result[1] / "samples.jsonl"
        ).read_bytes()
        assert read_result(tmp_path / name).metrics == result[0].metrics


def test_the_command_says_chance_of_a_collapsed_model_and_refuses_nan(
    knowing_model: Path,
    tokenizer: Path,
    gallery: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """R2 and R3, through `glscl eval retrieval`."""

    def collapse(model: GLSCLModel) -> None:
        model.contrastive_image_head[3].weight.zero_()

    def command(change) -> tuple[int, str, str]:
        model = changed(knowing_model, tokenizer, tmp_path / "m", change)
        words = ["--model", str(model), "--data", str(gallery), "--out", str(tmp_path / "o")]
        return main(["eval", "retrieval", *words, "--json"]), *capsys.readouterr()

    code, printed, _ = command(collapse)
    found = {metric["name"]: metric for metric in json.loads(printed.splitlines()[-1])["metrics"]}
    assert code == 0
    assert found["text_to_image/R@1"]["value"] == pytest.approx(100 / PICTURES)
    assert "degenerate_scores/text_to_image" in json.loads(printed.splitlines()[-1])["flags"]
    code, _, error = command(lambda m: m.image_projection.bias.fill_(float("nan")))
    assert (code, error.count("\n")) == (4, 1)
    assert "not finite for 20 of 20: scenes-test/test-000000.tar/000000000" in error


def launched(world: int, config: Path, out: Path) -> Result:
    """Evaluate on several processes; returns what they wrote."""
    launch = f"accelerate.commands.launch --multi_gpu --num_processes {world} --num_machines 1 --mixed_precision no"
    command = [
        sys.executable,
        "-m",
        *launch.split(),
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    command += ["-m", "eval", "retrieval", str(config), "--out", str(out)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["stage"] == "retrieval"
    return read_result(out)


@pytest.mark.slow
def test_any_number_of_processes_reaches_the_same_result_and_shares_what_is_kept(
    knowing_model: Path, tmp_path: Path
) -> None:
    """G1 and G2: 135 pictures are three blocks, the last of seven; two processes go on where three were killed."""
    generate(tmp_path / "scenes", train=0, val=0, test=135, novel=0, size=48, seed=5, workers=1)
    data, cache = tmp_path / "scenes" / "test", tmp_path / "cache"
    alone = evaluate(knowing_model, data, tmp_path / "1", rerank_k=4)
    config = tmp_path / "retrieval.yaml"
    values = {
        "model": str(knowing_model),
        "data": str(data),
        "out": "replaced",
        "rerank_k": 4,
        "cache": str(cache),
    }
    config.write_text(json.dumps(values))
    for world in (3, 2):
        found = launched(world, config, tmp_path / str(world))
        assert found.environment["world"] == world
        assert found.metrics == alone.metrics
        lines = (tmp_path / str(world) / "samples.jsonl").read_bytes()
        assert lines == (tmp_path / "1" / "samples.jsonl").read_bytes()
        files = sorted(cache.rglob("*.safetensors"))
        assert len(files) == 3 + 3
        if world == 3:
            kept = {file: file.stat().st_mtime_ns for file in files[::2]}
            for file in files[1::2]:
                file.unlink()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_result_of_an_undisturbed_one(
    knowing_model: Path, tmp_path: Path
) -> None:
    """G2, with a process that is really killed."""
    generate(tmp_path / "d", train=0, val=0, test=200, novel=0, size=48, seed=5, workers=1)
    where = [
        "--model",
        str(knowing_model),
        "--data",
        str(tmp_path / "d" / "test"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "eval",
        "retrieval",
        *where,
        "--out",
        str(tmp_path / "parts"),
    ]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root)
    while not (kept := list((tmp_path / "cache").rglob("*.safetensors"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    written = {file: file.stat().st_mtime_ns for file in kept}
    assert not (tmp_path / "parts" / "result.json").exists()
    assert subprocess.run(command, cwd=root).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == written
    evaluate(knowing_model, tmp_path / "d" / "test", tmp_path / "whole")
    parts, whole = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("parts", "whole")
    )
    for found in (parts, whole):
        del found["timing"], found["environment"]["date"]
    assert parts == whole
    assert (tmp_path / "parts" / "samples.jsonl").read_bytes() == (
        tmp_path / "whole" / "samples.jsonl"
    ).read_bytes()

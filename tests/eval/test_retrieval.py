"""The retrieval stage: models that know the gallery or nothing, ties, broken files, processes."""

import itertools
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
from eval.stages.retrieval.shortlists import rank_range
from eval.stages.retrieval.stage import metrics
from launch.cli import main
from pretrain.model import GLSCLModel
from pretrain.ranking import ranks, two_stage_ranks

from .conftest import PICTURES, save_model, warnings

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


def expected_ranks(folder: Path, stage: str) -> list[float]:
    standings = [record[stage] for record in read_records(folder)]
    return [s["above"] + (s["tied"] + 1) / (s["tied_positives"] + 1) for s in standings]


def test_a_model_that_knows_the_gallery_finds_its_images(result: tuple[Result, Path]) -> None:
    recall = result[0].metric("text_to_image/R@1")
    assert recall.value > 80
    assert recall.ci95 is not None and recall.ci95[0] <= recall.value <= recall.ci95[1]
    assert (recall.n, recall.unit) == (CAPTIONS, "percent")
    assert recall.chance == pytest.approx(100 / PICTURES)
    assert result[0].metric("image_to_text/R@1").n == PICTURES
    assert result[0].metric("text_to_image/reranked/R@1").value > 80
    assert warnings(result[0]) == []


def test_permuted_images_bring_it_back_to_chance(
    result: tuple[Result, Path], knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    # A random permutation leaves one image in its place on average; this one leaves exactly one.
    place = [0, *(1 + (i + 7) % (PICTURES - 1) for i in range(PICTURES - 1))]

    def permute(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        return [m | {"jpg": members[place[i]]["jpg"]} for i, m in enumerate(members)]

    permuted = rewritten(gallery, tmp_path / "permuted", permute)
    evaluated = evaluate(knowing_model, permuted, tmp_path / "out")
    for name in ("text_to_image/R@1", "image_to_text/R@1", "text_to_image/reranked/R@1"):
        metric = evaluated.metric(name)
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
    def collapse(model: GLSCLModel) -> None:
        model.contrastive_image_head[3].weight.zero_()
        model.contrastive_text_head[3].weight.zero_()

    result = evaluate(
        changed(knowing_model, tokenizer, tmp_path / "m", collapse),
        gallery,
        tmp_path / "o",
        rerank_k=0,
    )
    assert set(warnings(result)) == {
        "degenerate_scores/text_to_image",
        "degenerate_scores/image_to_text",
    }
    for metric in result.metrics:
        assert metric.value == pytest.approx(
            100.0 if metric.name.endswith("tie_rate") else metric.chance
        )
    assert result.metric("text_to_image/R@1").bounds == (0.0, 100.0)


def test_a_constant_matching_head_is_flagged_and_counts_as_guessing_in_the_shortlist(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    model = changed(
        knowing_model, tokenizer, tmp_path / "m", lambda m: m.matching_head.weight.zero_()
    )
    result = evaluate(model, gallery, tmp_path / "o", rerank_k=4, score="itm")
    assert warnings(result) == ["constant_match_scores"]
    first, both = result.metric("text_to_image/R@4"), result.metric("text_to_image/reranked/R@1")
    assert both.value == pytest.approx(first.value / 4)
    assert result.metric("text_to_image/reranked/tie_rate").value == pytest.approx(first.value)
    assert result.metric("text_to_image/tie_rate").value == 0.0


def test_a_shortlist_of_everything_ranks_by_the_head_alone(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    evaluate(knowing_model, gallery, tmp_path, rerank_k=CAPTIONS, score="itm")
    loaded = load(knowing_model)
    images = encode_images(loaded, Manifest.load(gallery))
    captions = list(itertools.chain.from_iterable(images.captions))
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
    evaluate(knowing_model, gallery, tmp_path, rerank_k=1)
    assert expected_ranks(tmp_path, "reranked") == expected_ranks(tmp_path, "contrastive")


def test_a_model_that_gives_nan_is_refused_with_the_sample(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
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


def test_copies_of_images_and_captions_tie_and_are_counted(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    doubled = rewritten(
        gallery, tmp_path / "doubled", lambda members: [members[i // 2] for i in range(PICTURES)]
    )
    result = evaluate(knowing_model, doubled, tmp_path / "o", rerank_k=PICTURES)
    assert (result.data["duplicate_images"], result.data["duplicate_texts"]) == (
        PICTURES // 2,
        CAPTIONS // 2,
    )
    for line in read_records(tmp_path / "o"):
        for stage in ("contrastive", "reranked"):
            assert line[stage]["tied"] == 2 * line[stage]["tied_positives"]


def test_bounds_of_reranking_cover_ties_at_the_cut(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """Of two equal images a shortlist of one holds the first, and could as well hold the second."""
    doubled = rewritten(
        gallery, tmp_path / "doubled", lambda members: [members[i // 2] for i in range(PICTURES)]
    )
    result = evaluate(knowing_model, doubled, tmp_path / "o", rerank_k=1)
    assert result.metric("text_to_image/reranked/cut_in_a_tie").value == 100.0
    first = result.metric("text_to_image/R@1")
    both = result.metric("text_to_image/reranked/R@1")
    assert first.bounds is not None and first.bounds[1] > 80
    assert both.bounds == (0.0, first.bounds[1])
    assert both.bounds[0] < both.value < both.bounds[1]
    assert metrics(read_records(tmp_path / "o")) == result.metrics


@pytest.mark.parametrize("seed", range(60))
def test_the_range_of_ranks_holds_for_every_shortlist_of_equal_candidates(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, 7).astype(np.float32)
    positives = np.flatnonzero(generator.random(7) < 0.35)
    if not len(positives):
        positives = np.array([3])
    k = int(generator.integers(1, 6))
    listed = np.argsort(-scores, kind="stable")[:k]
    second = generator.permutation(7).astype(np.float32)
    possible = rank_range(scores, listed, second[listed], positives)

    edge = scores[listed[-1]]
    certain, tied = np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)
    reached = set()
    for chosen in itertools.combinations(tied, k - len(certain)):
        shortlist = np.array([*certain, *chosen])
        # Nobody knows the second scores of candidates that were not listed: try extremes.
        unlisted = np.setdiff1d(shortlist, listed)
        for extremes in itertools.product((-100.0, 100.0), repeat=len(unlisted)):
            assumed = second.copy()
            assumed[unlisted] = extremes
            ranked = two_stage_ranks(
                scores[None], [positives], shortlist[None], assumed[None, shortlist]
            )
            reached.add((int(ranked.optimistic[0]), int(ranked.pessimistic[0])))
    if possible is None:
        assert len(reached) == 1
    else:
        assert possible[0] <= min(low for low, _ in reached)
        assert possible[1] >= max(high for _, high in reached)


def test_an_image_that_cannot_be_read_is_listed_and_its_queries_are_missed(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    def break_one(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        broken = dict(members[2])
        broken["jpg"] = broken["jpg"][:100]
        return [*members[:2], broken, *members[3:]]

    data = rewritten(gallery, tmp_path / "broken", break_one)
    result = evaluate(knowing_model, data, tmp_path / "out", rerank_k=2)
    ((key, problem),) = result.data["unreadable"].items()
    assert key.endswith("/002") and "cannot be evaluated" in problem
    assert warnings(result) == ["unreadable_images"]
    assert "missed" in result.protocol["unreadable"]
    assert result.data["images"] == PICTURES - 1
    lines = list(read_records(tmp_path / "out"))
    missed = [line for line in lines if line["image"] == key]
    assert len(missed) == 1 + 5 and all(line["unreadable"] for line in missed)
    assert {metric.value for metric in metrics(missed) if "/R@" in metric.name} == {0.0}
    for line in lines:
        for candidate, _ in line["contrastive"]["top"]:
            assert candidate.partition("#")[0] != key
    assert result.metric("image_to_text/R@1").n == PICTURES
    assert result.metric("text_to_image/R@1").n == CAPTIONS
    assert metrics(lines) == result.metrics


def test_an_unreadable_image_counts_once_when_folds_are_ranked_separately(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    def break_last(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        return [*members[:-1], members[-1] | {"jpg": b"not a JPEG"}]

    data = rewritten(gallery, tmp_path / "broken", break_last)
    result = evaluate(knowing_model, data, tmp_path / "out", folds=2)
    assert result.metric("image_to_text/R@1").n == PICTURES
    missed = [line for line in read_records(tmp_path / "out") if "unreadable" in line]
    assert {line["candidates"] for line in missed} == {PICTURES // 2, CAPTIONS // 2}


def test_an_unreadable_image_may_have_more_captions_than_there_are_candidates(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    def one_caption_and_many(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        first = members[0] | {"json": b'{"captions": ["one"]}'}
        return [first, members[1] | {"jpg": b"not a JPEG"}]

    data = rewritten(gallery, tmp_path / "broken", one_caption_and_many)
    result = evaluate(knowing_model, data, tmp_path / "out", rerank_k=0)
    assert result.metric("image_to_text/R@1").n == 2


def test_a_single_image_is_retrieved(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    result = evaluate(knowing_model, gallery, tmp_path, limit=1)
    assert result.metric("text_to_image/reranked/R@10").value == 100.0
    # A single image says nothing about others.
    assert result.metric("text_to_image/R@1").ci95 == (0.0, 100.0)
    assert warnings(result) == []


def test_a_single_pair_does_not_flag_a_constant_head(
    knowing_model: Path, tmp_path: Path, jpeg: bytes
) -> None:
    write_shards(
        tmp_path / "pair", [("a", {"jpg": jpeg, "txt": b"a red square"})], source={"name": "pair"}
    )
    assert warnings(evaluate(knowing_model, tmp_path / "pair", tmp_path / "o")) == []


@pytest.mark.parametrize("ignored", ["image_projection", "text_projection"])
def test_a_head_that_looks_at_one_side_only_is_flagged(
    ignored: str, knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """Its scores differ from query to query, and say nothing about which candidate fits."""

    def ignore(model: GLSCLModel) -> None:
        getattr(model, ignored).weight.zero_()

    model = changed(knowing_model, tokenizer, tmp_path / "m", ignore)
    assert "constant_match_scores" in evaluate(model, gallery, tmp_path / "o").flags


def test_match_scores_of_networks_in_bf16_are_ranked(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    exact = evaluate(knowing_model, gallery, tmp_path / "fp32", rerank_k=4)
    half = evaluate(knowing_model, gallery, tmp_path / "bf16", rerank_k=4, precision="bf16")
    name = "text_to_image/reranked/R@5"
    assert half.metric(name).value == pytest.approx(exact.metric(name).value, abs=15)


def test_wrong_options_and_missing_data_are_refused(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="score: Input should be 'itm' or 'itm.sim'"):
        evaluate(knowing_model, gallery, tmp_path, score="itc")
    with pytest.raises(UsageError, match="rerank_k is -1"):
        evaluate(knowing_model, gallery, tmp_path, rerank_k=-1)
    with pytest.raises(UsageError, match="precision: .*got 'fp8'"):
        evaluate(knowing_model, gallery, tmp_path, precision="fp8")
    with pytest.raises(UsageError, match="no model at"):
        evaluate(tmp_path / "nothing", gallery, tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        evaluate(knowing_model, tmp_path / "nowhere", tmp_path)
    with pytest.raises(UsageError, match="limit is 0, must be at least 1"):
        evaluate(knowing_model, gallery, tmp_path, limit=0)


def test_folds_rank_each_part_by_itself(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    """COCO's 1K is five parts of its 5K."""
    whole = evaluate(knowing_model, gallery, tmp_path / "folds", folds=2)
    lines = list(read_records(tmp_path / "folds"))
    assert {line["candidates"] for line in lines} == {PICTURES // 2, CAPTIONS // 2}
    evaluate(knowing_model, gallery, tmp_path / "first", limit=PICTURES // 2)
    of_first_fold = [line for line in lines if line["fold"] == 0]
    for line, alone in zip(of_first_fold, read_records(tmp_path / "first"), strict=True):
        assert line["query"] == alone["query"]
        for stage in ("contrastive", "reranked"):
            assert line[stage]["above"] == alone[stage]["above"]
    assert whole.metric("text_to_image/R@1").chance == pytest.approx(200 / PICTURES)
    with pytest.raises(UsageError, match="folds is 21, more than the 20 images"):
        evaluate(knowing_model, gallery, tmp_path / "o", folds=21)


def test_images_may_have_any_number_of_captions(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    """Every image and every caption is one query; mAP counts all captions of an image."""

    def unequal(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        counts = [1, 3, 7]
        rewritten_members = []
        for i, sample in enumerate(members):
            texts = (json.loads(sample["json"])["captions"] * 2)[: counts[i % 3]]
            annotations = json.dumps({"captions": texts}).encode()
            rewritten_members.append({"jpg": sample["jpg"], "json": annotations})
        return rewritten_members

    result = evaluate(knowing_model, rewritten(gallery, tmp_path / "d", unequal), tmp_path / "o")
    assert result.metric("image_to_text/R@1").n == PICTURES
    assert result.metric("text_to_image/R@1").n == result.data["texts"] == 7 * 1 + 7 * 3 + 6 * 7
    assert {line["positives"] for line in read_records(tmp_path / "o")} == {1, 3, 7}
    assert 0 < result.metric("image_to_text/mAP").value <= 100
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


def test_the_command_reports_chance_for_a_collapsed_model_and_refuses_nan(
    knowing_model: Path,
    tokenizer: Path,
    gallery: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def collapse(model: GLSCLModel) -> None:
        model.contrastive_image_head[3].weight.zero_()

    def command(change) -> tuple[int, str, str]:
        model = changed(knowing_model, tokenizer, tmp_path / "m", change)
        words = ["--model", str(model), "--data", str(gallery), "--out", str(tmp_path / "o")]
        words += ["--overwrite", "--json"]
        return main(["eval", "retrieval", *words]), *capsys.readouterr()

    code, printed, _ = command(collapse)
    printed_result = json.loads(printed.splitlines()[-1])
    values = {metric["name"]: metric["value"] for metric in printed_result["metrics"]}
    assert code == 0
    assert values["text_to_image/R@1"] == pytest.approx(100 / PICTURES)
    assert "degenerate_scores/text_to_image" in printed_result["flags"]
    code, _, error = command(lambda m: m.image_projection.bias.fill_(float("nan")))
    assert (code, error.count("\n")) == (4, 1)
    assert "not finite for 20 of 20: scenes-test/test-000000.tar/000000000" in error


def launched(world: int, config: Path, out: Path) -> Result:
    """Evaluate on several processes; returns what they wrote."""
    launch = f"accelerate.commands.launch --multi_gpu --num_processes {world} --num_machines 1"
    launch += " --mixed_precision no"
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
    """135 images are three blocks, the last of seven; two processes go on where three stopped."""
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
        result = launched(world, config, tmp_path / str(world))
        assert result.environment["world"] == world
        assert result.metrics == alone.metrics
        lines = (tmp_path / str(world) / "samples.jsonl").read_bytes()
        assert lines == (tmp_path / "1" / "samples.jsonl").read_bytes()
        files = sorted(cache.rglob("*.safetensors"))
        assert len(files) == 3 + 3
        if world == 3:
            left = {file: file.stat().st_mtime_ns for file in files[::2]}
            for file in files[1::2]:
                file.unlink()
    assert {file: file.stat().st_mtime_ns for file in left} == left


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_result_of_an_undisturbed_one(
    knowing_model: Path, tmp_path: Path
) -> None:
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
    files: list[Path] = []
    while not files:
        assert process.poll() is None
        time.sleep(0.005)
        files = list((tmp_path / "cache").rglob("*.safetensors"))
    process.kill()
    process.wait()
    written = {file: file.stat().st_mtime_ns for file in files}
    assert not (tmp_path / "parts" / "result.json").exists()
    assert subprocess.run(command, cwd=root).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in files} == written
    evaluate(knowing_model, tmp_path / "d" / "test", tmp_path / "whole")
    parts = json.loads((tmp_path / "parts" / "result.json").read_text())
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    for result in (parts, whole):
        del result["timing"], result["environment"]["date"]
    assert parts == whole
    assert (tmp_path / "parts" / "samples.jsonl").read_bytes() == (
        tmp_path / "whole" / "samples.jsonl"
    ).read_bytes()

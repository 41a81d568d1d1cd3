"""True against changed captions: what changes in them, and models that cannot decide."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from data_pipeline.shards.write import write_shards
from eval.encoding.matching_scores import flag_constant_scores
from eval.results.schema import read_records
from eval.stages.preference import evaluate
from eval.stages.preference.stage import metrics
from pretrain.model import GLSCLModel

from .conftest import save_model


def test_every_metric_follows_from_the_records(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    result = evaluate(knowing_model, gallery, tmp_path)
    lines = list(read_records(tmp_path))
    assert metrics(lines) == result.metrics
    assert result.data["pairs"] == len(lines) == result.metric("contrastive/accuracy").n > 20
    kinds = {line["kind"] for line in lines}
    by_kind = [result.metric(f"matching/accuracy/{kind}") for kind in kinds]
    total = sum(metric.value * metric.n for metric in by_kind) / len(lines)
    assert result.metric("matching/accuracy").value == pytest.approx(total)
    assert all(metric.chance == 50 for metric in result.metrics)


def test_swapped_attributes_keep_the_words_and_reversed_relations_change_one(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    evaluate(knowing_model, gallery, tmp_path)
    relations = {"left", "right", "above", "below", "over", "under"}
    for line in read_records(tmp_path):
        true, false = (Counter(line[name].replace(",", "").split()) for name in ("true", "false"))
        assert line["true"] != line["false"]
        changed = set((true - false) + (false - true)) - {"a", "an"}
        assert not changed if line["kind"] == "attributes" else changed and changed <= relations


def test_a_model_without_a_preference_gets_half_and_is_flagged(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.matching_head.weight.zero_()
        model.contrastive_text_head[3].weight.zero_()
    result = evaluate(save_model(model, tokenizer, tmp_path / "m"), gallery, tmp_path / "o")
    assert (
        result.metric("matching/accuracy").value
        == result.metric("contrastive/accuracy").value
        == 50.0
    )
    assert result.metric("matching/accuracy").bounds == (0.0, 100.0)
    assert "constant_scores/matching" in result.flags


def test_data_without_scene_graphs_are_refused(
    knowing_model: Path, tmp_path: Path, jpeg: bytes
) -> None:
    members = {
        "jpg": jpeg,
        "txt": b"a red square",
        "json": b'{"scene": "indoors", "statements": []}',
    }
    write_shards(tmp_path / "plain", [("a", members)], source={"name": "plain"})
    with pytest.raises(DataError, match="must be a split of generated scenes"):
        evaluate(knowing_model, tmp_path / "plain", tmp_path / "o")


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_scores_that_differ_by_rounding_alone_are_flagged_on_any_processor(scale: float) -> None:
    """Kernels of some processors leave a few units in the last place; real differences are more."""
    random = np.random.default_rng(0)
    unit = np.finfo(np.float32).eps
    rounded = scale * (1 + unit * random.integers(-16, 17, (2, 50)))
    different = scale * (1 + 1e-4 * random.random((2, 50)))
    flags = flag_constant_scores({"contrastive": rounded, "matching": different})
    assert flags == ["constant_scores/contrastive"]

"""Bad samples: replaced the same way everywhere, listed once, an error if there are too many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import open_loader
from data_pipeline.quarantine import FEWEST, RECENT_DRAWS, BadRecord, Quarantine, stand_in
from tests.data_pipeline.batches import keys_of_next

OPTIONS = {
    "seed": 3,
    "global_batch": 8,
    "size": 32,
    "patch_size": 8,
    "group": 4,
    "max_bad_fraction": 1.0,
}


def record(key: int, shard: str = "b.tar") -> BadRecord:
    return BadRecord("a", shard, str(key), "undecodable", "the image cannot be decoded")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_epoch(root: Path, tokenizer, **options: object) -> list[str]:
    with open_loader([root], tokenizer=tokenizer, **{**OPTIONS, **options}) as loader:
        return keys_of_next(loader, 5)


@pytest.fixture
def spoiled(write_images, tmp_path) -> Path:
    """40 images, three of them bad: random bytes, no caption, an empty one."""
    from_others = {
        5: {"jpg": b"\xff\xd8" + b"random" * 50, "txt": b"a star"},
        6: {"jpg": b"\xff\xd8"},
        23: {"jpg": b"\xff\xd8", "txt": b"  "},
    }
    return write_images(tmp_path / "spoiled", 40, spoiled=from_others).root


def test_a_replacement_depends_on_its_position_alone():
    assert stand_in(1, 1000, 2, 3, 4) == stand_in(1, 1000, 2, 3, 4)
    assert len({stand_in(1, 1000, 2, 3, attempt) for attempt in range(1, 8)}) == 7


def test_bad_samples_are_replaced_and_everything_else_stays(spoiled, tokenizer, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    with open_loader([spoiled], tokenizer=tokenizer, quarantine=path, **OPTIONS) as loader:
        planned = []
        for step in range(5):
            for key in loader.step_keys(step):
                planned.append(key)
        read = []
        for _ in range(5):
            for key in next(loader).keys:
                read.append(key)
    replaced = [(plan, key) for plan, key in zip(planned, read, strict=True) if plan != key]
    assert sorted(plan[-5:] for plan, _ in replaced) == ["00005", "00006", "00023"]
    assert {"00005", "00006", "00023"}.isdisjoint(key[-5:] for key in read)
    line_by_key = {line["key"]: line for line in lines(path)}
    assert {key: line["reason"] for key, line in line_by_key.items()} == {
        "00005": "undecodable",
        "00006": "missing-field",
        "00023": "empty-text",
    }
    assert (
        line_by_key["00005"]["source"] == "images"
        and line_by_key["00005"]["shard"] == "shard-000000.tar"
    )
    assert "00006" in line_by_key["00006"]["message"]


@pytest.mark.parametrize("options", [{"workers": 2}, {"micro_batches": 2}])
def test_replacements_are_the_same_however_the_batch_is_divided(spoiled, tokenizer, options):
    whole = read_epoch(spoiled, tokenizer)
    with open_loader([spoiled], tokenizer=tokenizer, **{**OPTIONS, **options}) as loader:
        batches = 5 * options.get("micro_batches", 1)
        assert keys_of_next(loader, batches) == whole


def test_a_bad_sample_is_recorded_once_over_epochs_and_restarts(spoiled, tokenizer, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    for _ in range(2):
        with open_loader([spoiled], tokenizer=tokenizer, quarantine=path, **OPTIONS) as loader:
            for _ in range(15):
                next(loader)
    keys = [line["key"] for line in lines(path)]
    assert sorted(keys) == ["00005", "00006", "00023"]


def test_a_torn_last_line_is_ignored(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).note(1, [record(1)])
    with path.open("a") as file:
        file.write('{"source": "a", "sh')
    Quarantine(path).note(1, [record(1), record(2)])
    whole_lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["key"] for line in whole_lines] == ["1", "2"]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_readable_sample_ends_with_the_worst_shard(
    write_images, tokenizer, tmp_path, workers
):
    bad = {number: {"jpg": b"bad", "txt": b"a star"} for number in range(30)}
    root = write_images(tmp_path / "bad", 30, spoiled=bad).root
    with (
        open_loader(
            [root], tokenizer=tokenizer, workers=workers, quarantine=tmp_path / "q.jsonl", **OPTIONS
        ) as loader,
        pytest.raises(
            DataError, match=r"8 samples in a row are bad; worst shard images/shard-000000.tar"
        ),
    ):
        next(loader)
    assert lines(tmp_path / "q.jsonl")


def test_too_many_bad_samples_end_the_run_and_name_the_worst_shard(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", limit=0.01)
    bad = [record(key, "worst.tar" if key % 3 else "b.tar") for key in range(FEWEST)]
    quarantine.note(1000, bad[:-1])
    with pytest.raises(DataError, match=rf"{FEWEST} of the last 1,999 .*worst shard a/worst.tar"):
        quarantine.note(999, bad[-1:])


def test_a_few_bad_samples_among_many_are_tolerated():
    quarantine = Quarantine(None, limit=0.01)
    for _ in range(50):
        quarantine.note(RECENT_DRAWS // 10, [record(0)] * 10)  # just 1 %
    with pytest.raises(DataError):
        quarantine.note(100, [record(0)] * 10)

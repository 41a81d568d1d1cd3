"""Shards that plain webdataset reads, equal bytes for equal records, never half a data set."""

import json

import pytest
import webdataset

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import parse_sample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify
from data_pipeline.shards.write import write_shards


def records(count):
    for i in range(count):
        document = {"captions": [f"caption {i}", "another"], "image_id": f"image-{i}"}
        yield (
            f"{i:09d}",
            {
                "jpg": b"\xff\xd8" + bytes([i]) * (i * 100 + 1),
                "json": json.dumps(document).encode(),
            },
        )


def samples_of(manifest):
    for number in range(len(manifest.shards)):
        shard_index, stored = manifest.index(number), manifest.shard_path(number).read_bytes()
        for i in range(len(shard_index)):
            parts = {}
            for m in shard_index.members(i):
                parts[m.extension] = stored[m.offset : m.offset + m.size]
            yield parse_sample(shard_index.key(i), parts)


def test_plain_webdataset_reads_the_same_samples(tmp_path):
    manifest = write_shards(
        tmp_path / "data", records(25), source={"name": "x"}, samples_per_shard=10
    )
    assert [shard.samples for shard in manifest.shards] == [10, 10, 5]

    urls = [str(manifest.shard_path(number)) for number in range(3)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))

    ours = list(samples_of(manifest))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in ours]
    assert [sample["jpg"] for sample in read] == [sample.media for sample in ours]
    for sample, our_sample in zip(read, ours, strict=True):
        assert json.loads(sample["json"]) == our_sample.annotations


def test_the_written_data_set_loads_and_verifies(tmp_path):
    written = write_shards(tmp_path / "data", records(7), source={"name": "x"}, prefix="train")
    loaded = Manifest.load(tmp_path / "data")
    assert loaded == written
    assert loaded.shards[0].name == "train-000000.tar"
    assert verify(tmp_path / "data") == []


def test_equal_records_give_equal_bytes(tmp_path):
    digests = set()
    for name in ("one", "two"):
        digests.add(write_shards(tmp_path / name, records(7), source={"name": name}).digest)
    assert len(digests) == 1


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="data already exists"):
        write_shards(tmp_path / "data", records(3), source={})
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    assert write_shards(tmp_path / "data", records(3), source={}).samples == 3


def test_writing_no_samples_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no samples"):
        write_shards(tmp_path / "data", [], source={})
    assert not (tmp_path / "data").exists()


def test_an_interrupted_writer_leaves_no_data_set_and_the_next_call_completes(tmp_path):
    def interrupted():
        yield from records(15)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "data", interrupted(), source={"name": "x"}, samples_per_shard=10)
    assert not (tmp_path / "data").exists()

    manifest = write_shards(
        tmp_path / "data", records(12), source={"name": "x"}, samples_per_shard=10
    )

    assert manifest.samples == 12
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_key_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds sample 000000000 twice"):
        write_shards(tmp_path / "data", [*records(1), *records(1)], source={})

"""Random access to samples, and the messages when their bytes have changed."""

from __future__ import annotations

import os
import shutil

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sample import BadSample
from data_pipeline.shards import store as storing
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store


@pytest.fixture
def copied(images, tmp_path) -> Manifest:
    shutil.copytree(images.root, tmp_path / "copy")
    return Manifest.load(tmp_path / "copy")


def test_every_sample_is_found_by_its_number(images, write_images, tmp_path):
    other = write_images(tmp_path, 5, name="other")
    store = Store([images, other])
    assert store.read(0, 0).key == "images/shard-000000.tar/00000"
    assert store.read(0, 199).key == "images/shard-000001.tar/00199"
    assert store.read(0, 259).captions[0].endswith(" 259")
    assert store.read(1, 4).key == "other/shard-000000.tar/00004"
    assert store.read(1, 4).media[:2] == b"\xff\xd8"


def test_captions_are_read_without_the_image(copied):
    member = next(member for member in copied.index(0).members(7) if member.extension == "jpg")
    with copied.shard_path(0).open("r+b") as file:
        file.seek(member.offset + 20)
        file.write(b"changed")
    assert Store([copied]).captions(0, 7) == Store([copied], check=False).read(0, 7).captions


def test_only_a_few_shards_are_open_at_once(images, monkeypatch):
    monkeypatch.setattr(storing, "MAX_OPEN", 2)
    before = len(os.listdir("/proc/self/fd"))
    store = Store([images])
    for sample in (0, 100, 200, 0, 250, 150):
        assert store.read(0, sample).captions
    assert len(os.listdir("/proc/self/fd")) == before + 2
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_changed_bytes_are_a_bad_sample(copied):
    member = copied.index(0).members(7)[0]
    with copied.shard_path(0).open("r+b") as file:
        file.seek(member.offset + 20)
        file.write(b"changed")
    with pytest.raises(BadSample, match="images/shard-000000.tar/00007.*have changed") as error:
        Store([copied]).read(0, 7)
    assert error.value.reason == "checksum"
    assert Store([copied]).read(0, 8)
    assert Store([copied], check=False).read(0, 7)


def test_a_shard_cut_while_it_is_read_is_named(copied):
    store = Store([copied])
    store.read(0, 0)
    member = copied.index(0).members(99)[0]
    os.truncate(copied.shard_path(0), member.offset + 10)
    with pytest.raises(
        DataError, match=r"shard images/shard-000000.tar ends inside sample 00099 .*found 10"
    ):
        store.read(0, 99)


def test_a_missing_shard_is_named(copied):
    copied.shard_path(1).unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar"):
        Store([copied]).read(0, 150)

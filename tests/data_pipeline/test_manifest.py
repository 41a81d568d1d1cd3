"""Indexing and checking shards that anyone may have written, and the messages about bad ones."""

import io
import json
import tarfile

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest, ShardIndex, index
from data_pipeline.shards.verify import verify


def jpeg(colour=(200, 30, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(files, tar_format=tarfile.USTAR_FORMAT):
    """Bytes of a tar of (name, payload) or ready TarInfo objects."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def pair(key, caption="a dog"):
    return [
        (f"{key}.jpg", jpeg()),
        (f"{key}.json", b'{"key": "x"}'),
        (f"{key}.txt", caption.encode()),
    ]


def data_set(folder, *shards):
    folder.mkdir(exist_ok=True)
    for number, files in enumerate(shards):
        payload = files if isinstance(files, bytes) else tar_of(files)
        (folder / f"{number:05d}.tar").write_bytes(payload)
    return folder


def message_of(folder):
    with pytest.raises(DataError) as caught:
        index(folder)
    text = str(caught.value)
    assert "\n" not in text and "00000.tar" in text
    return text


def linked(kind):
    info = tarfile.TarInfo("000.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_shards_of_img2dataset_are_indexed(tmp_path):
    root = data_set(tmp_path / "cc3m", pair("000000000") + pair("000000003"), pair("000010001"))
    (root / "00000_stats.json").write_text("{}")

    manifest = index(root)

    assert (manifest.name, manifest.samples, manifest.fields) == (
        "cc3m",
        3,
        {"jpg": 3, "json": 3, "txt": 3},
    )
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [
        ("00000.tar", 2),
        ("00001.tar", 1),
    ]
    assert [manifest.index(0).key(i) for i in range(2)] == ["000000000", "000000003"]


def test_a_member_is_where_the_index_says_and_has_its_hash(tmp_path):
    root = data_set(tmp_path / "data", pair("a") + pair("b", "a cat"))
    index(root)
    manifest = Manifest.load(root)
    stored = manifest.shard_path(0).read_bytes()

    members = {member.extension: member for member in manifest.index(0).members(1)}

    text = members["txt"]
    assert stored[text.offset : text.offset + text.size] == b"a cat"
    assert text.xxh3 == xxhash.xxh3_64_intdigest(b"a cat")
    assert stored[members["jpg"].offset :][: members["jpg"].size] == jpeg()


def test_the_manifest_file_has_the_documented_fields(tmp_path):
    root = data_set(tmp_path / "data", pair("a"))
    index(root, source={"name": "mine"})
    document = json.loads((root / "dataset.json").read_text())
    assert document["format"] == "glscl-dataset/1"
    assert document["samples"] == 1
    assert document["shards"][0].keys() == {"name", "samples", "bytes", "sha256"}
    assert document["source"] == {"name": "mine"}


def test_several_workers_write_the_same_index(tmp_path):
    alone = data_set(tmp_path / "one", pair("a"), pair("b"), pair("c"))
    together = data_set(tmp_path / "two", pair("a"), pair("b"), pair("c"))
    assert index(alone, workers=1).digest == index(together, workers=2).digest
    names = [path.name for path in sorted(alone.iterdir()) if path.name != "dataset.json"]
    assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)


def test_shards_in_folders_below_are_found(tmp_path):
    data_set(tmp_path / "data", pair("a"))
    data_set(tmp_path / "data" / "more", pair("a"))
    assert [shard.name for shard in index(tmp_path / "data").shards] == [
        "00000.tar",
        "more/00000.tar",
    ]


def test_hidden_files_are_not_shards(tmp_path):
    root = data_set(tmp_path / ".data", pair("a"))
    data_set(root / ".cache", b"half of a tar")
    (root / ".00000.tar").write_bytes(b"a resource fork")
    assert [shard.name for shard in index(root).shards] == ["00000.tar"]


def test_indexing_again_keeps_the_source_of_the_data(tmp_path):
    root = data_set(tmp_path / "data", pair("a"))
    index(root, source={"name": "mine", "kind": "photos"})
    data_set(root, pair("a") + pair("b"))
    assert index(root).source == {"name": "mine", "kind": "photos"}
    assert index(root, name="yours").source == {"name": "yours", "kind": "photos"}
    (root / "dataset.json").write_text("{")
    assert index(root).source == {"name": "data"}
    with pytest.raises(UsageError, match="'a/b'"):
        index(root, name="a/b")


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_names_of_every_tar_format_are_read(tmp_path, tar_format):
    key = "/".join(["folder" * 4] * 5) + "/" + "é" * 20
    index(data_set(tmp_path / "data", tar_of(pair("a") + pair(key), tar_format)))
    assert Manifest.load(tmp_path / "data").index(0).key(1) == key


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text("abcé0 -_", min_size=1, max_size=120),
            st.dictionaries(
                st.sampled_from(["jpg", "json", "txt", "a.b"]), st.binary(max_size=1500), min_size=1
            ),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda sample: sample[0],
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_the_index_holds_the_contents_of_the_tar(tmp_path_factory, samples, tar_format):
    root = tmp_path_factory.mktemp("data")
    files = []
    for key, parts in samples:
        for extension, payload in parts.items():
            files.append((f"{key}.{extension}", payload))
    data_set(root, tar_of(files, tar_format))
    shard_index = index(root).index(0)
    stored = (root / "00000.tar").read_bytes()
    read = []
    for i in range(len(shard_index)):
        read.append(
            (
                shard_index.key(i),
                {m.extension: stored[m.offset : m.offset + m.size] for m in shard_index.members(i)},
            )
        )
    assert read == samples


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_239))
def test_a_shard_cut_anywhere_is_refused_by_name(tmp_path_factory, length):
    root = tmp_path_factory.mktemp("data")
    whole = tar_of(pair("a") + pair("b"))
    assert len(whole) == 10_240
    # What is cut within the padding after the two zero blocks is whole.
    data_set(root, whole[:length])
    if length >= whole.rstrip(b"\0").__len__() // 512 * 512 + 1024:
        assert index(root).samples == 2
    else:
        assert "00000.tar" in message_of(root)


def test_a_cut_shard_names_the_sample_and_the_bytes(tmp_path):
    payload = tar_of([("a.txt", b"x" * 600), ("b.txt", b"y" * 5000)])
    text = message_of(data_set(tmp_path / "data", payload[:3000]))
    assert "ends inside sample b (expected 5,000 bytes, found 952)" in text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (pair("a") + pair("a"), "holds sample a twice"),
        (pair("a") + pair("b") + pair("a"), "holds sample a twice"),
        ([("a.JPG", b"x"), ("a.jpg", b"y")], "holds sample a twice"),
        (
            [("a.jpg", b"x"), ("b.jpg", b"y"), ("a.txt", b"z")],
            "sample a in two places (sample b lies between them)",
        ),
        ([linked(tarfile.SYMTYPE)], "000.jpg is a symbolic link"),
        ([linked(tarfile.LNKTYPE)], "000.jpg is a hard link"),
        ([linked(tarfile.CHRTYPE)], "000.jpg is a device"),
        ([linked(tarfile.FIFOTYPE)], "000.jpg is a pipe"),
        ([("../a.jpg", b"x")], "unsafe name: '../a.jpg'"),
        ([("/a.jpg", b"x")], "unsafe name: '/a.jpg'"),
        ([("x/../../a.jpg", b"x")], "unsafe name"),
        ([("README", b"x")], "holds no samples"),
        (b"", "is empty (0 bytes)"),
        (b"<html>404</html>" * 100, "is not a tar file"),
        (b"x" * 100, "is not a tar file"),
    ],
)
def test_forbidden_members_of_a_shard_are_refused(tmp_path, files, message):
    assert message in message_of(data_set(tmp_path / "data", files))


def test_a_damaged_header_is_noticed(tmp_path):
    payload = bytearray(tar_of(pair("a") + pair("b")))
    payload[payload.index(b"b.jpg")] ^= 1
    assert "is damaged after sample a" in message_of(data_set(tmp_path / "data", bytes(payload)))


def test_a_negative_size_does_not_loop_forever(tmp_path):
    header = bytearray(tar_of([("a.jpg", b"x")])[:512])
    header[124:136] = b"-0000001000\0"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    assert "bad size" in message_of(data_set(tmp_path / "data", bytes(header) * 4))


def test_pax_sizes_are_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": "512"}
    text = message_of(data_set(tmp_path / "data", tar_of([info], tarfile.PAX_FORMAT)))
    assert "PAX headers that change a member's size" in text


def test_folders_and_files_without_an_extension_are_ignored(tmp_path):
    folder = tarfile.TarInfo("images")
    folder.type = tarfile.DIRTYPE
    root = data_set(
        tmp_path / "data",
        [folder, ("README", b"x"), ("images/a.jpg", jpeg()), ("images/a.txt", b"a dog")],
    )
    assert index(root).index(0).key(0) == "images/a"


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")]
)
def test_a_path_without_shards_is_named(tmp_path, make):
    make(tmp_path / "data")
    for command in (index, Manifest.load, verify):
        with pytest.raises(DataError, match="data"):
            command(tmp_path / "data")


def test_shards_without_a_manifest_say_how_to_make_it(tmp_path):
    root = data_set(tmp_path / "data", pair("a"))
    with pytest.raises(DataError, match='make it with "glscl data index'):
        Manifest.load(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(format="other/1"),
        lambda document: document.update(samples=7),
        lambda document: document.update(shards=[], samples=0),
        lambda document: document["shards"][0].update(name="../other/00000.tar"),
        lambda document: document["shards"][0].update(name="/etc/passwd"),
        lambda document: document["shards"][0].pop("bytes"),
        lambda document: document.pop("source"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, change):
    root = data_set(tmp_path / "data", pair("a"))
    index(root)
    document = json.loads((root / "dataset.json").read_text())
    change(document)
    (root / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        Manifest.load(root)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_manifest_that_is_not_a_json_object_is_named(tmp_path, text):
    root = data_set(tmp_path / "data", pair("a"))
    (root / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        Manifest.load(root)


def test_a_shard_of_another_size_is_refused_without_reading_it(tmp_path):
    root = data_set(tmp_path / "data", pair("a"), pair("b"))
    manifest = index(root)
    shard = root / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    for check in (manifest.check_sizes, lambda: manifest.index(1)):
        with pytest.raises(
            DataError, match=r"shard 00001\.tar of .*: expected 10,240 bytes, found 5,000"
        ):
            check()
    shard.unlink()
    with pytest.raises(DataError, match=r"shard 00001\.tar of .* is missing"):
        manifest.check_sizes()


def test_an_index_of_another_shard_is_refused(tmp_path):
    root = data_set(tmp_path / "data", pair("a"), pair("b") + pair("c"))
    manifest = index(root)
    manifest.index_path(0).write_bytes(manifest.index_path(1).read_bytes())
    with pytest.raises(DataError, match="belongs to another version"):
        manifest.index(0)


@pytest.mark.parametrize("payload", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_a_malformed_index_is_refused(tmp_path, payload):
    (tmp_path / "x.index.safetensors").write_bytes(payload)
    with pytest.raises(DataError, match="is damaged"):
        ShardIndex.load(tmp_path / "x.index.safetensors")


def test_the_digest_follows_the_data_and_nothing_else(tmp_path):
    here = index(data_set(tmp_path / "here", pair("a")), source={"name": "x"})
    there = index(data_set(tmp_path / "there", pair("a")), source={"name": "y"})
    other = index(data_set(tmp_path / "other", pair("b")), source={"name": "x"})
    assert here.digest == there.digest != other.digest


def test_an_untouched_data_set_verifies(tmp_path):
    root = data_set(tmp_path / "data", pair("a"), pair("b"))
    index(root)
    assert verify(root, decode=True, workers=2) == []


def test_verify_names_the_sample_whose_bytes_changed(tmp_path):
    root = data_set(tmp_path / "data", pair("a"), pair("b") + pair("c", "a cat"))
    index(root)
    shard = root / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a cat", b"a cow"))
    assert verify(root) == ["shard 00001.tar: sample c is not as indexed: its txt changed"]


def test_verify_lists_every_broken_shard(tmp_path):
    root = data_set(tmp_path / "data", pair("a"), pair("b"), pair("c"), pair("d"))
    index(root)
    (root / "00000.tar").unlink()
    (root / "00001.tar").write_bytes((root / "00001.tar").read_bytes()[:1000])
    header = bytearray((root / "00002.tar").read_bytes())
    header[265:270] = b"owner"
    header[148:156] = b"%06o\0 " % (sum(header[:512]) - sum(header[148:156]) + 8 * 32)
    (root / "00002.tar").write_bytes(header)
    (root / "00003.tar.index.safetensors").unlink()

    missing, cut, renamed, without_index = verify(root)

    assert "00000.tar is missing" in missing
    assert "00001.tar ends inside sample b" in cut
    assert "00002.tar" in renamed and "sha256" in renamed
    assert "00003.tar" in without_index and "index" in without_index


def test_verify_with_decode_decodes_every_sample(tmp_path):
    files = [
        *pair("a"),
        ("b.jpg", b"\xff\xd8 no picture"),
        ("b.txt", b"a dog"),
        ("c.jpg", jpeg()),
        ("d.jpg", jpeg()),
    ]
    root = data_set(tmp_path / "data", [*files, ("d.json", b"{")])
    index(root)
    assert verify(root) == []
    undecodable, without_caption, bad_json = verify(root, decode=True)
    assert "00000.tar: sample b" in undecodable
    assert "00000.tar: sample c has no caption" in without_caption
    assert "00000.tar: sample d: its json member" in bad_json

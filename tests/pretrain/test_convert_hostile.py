"""Hostile checkpoints: no code runs, and memory use stays within the size of the file."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pretrain.model import GLSCLModel
from pretrain.model.tensor_file import open_tensors


class Command:
    """Creates a file when it is unpickled in the usual way."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Evaluated(Command):
    def __reduce__(self):
        return eval, (f"open({str(self.target)!r}, 'w')",)


class BuiltWithState(Command):
    """Passes its state to a function of the standard library."""

    def __reduce__(self):
        return (
            open,
            (str(self.target), "w"),
            {"__class__": os.system},
            iter([os.system]),
            iter([("a", os.system)]),
        )


@pytest.mark.parametrize("kind", [Command, Evaluated, BuiltWithState])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_in_a_checkpoint_does_not_run(tmp_path, kind, zipped):
    target = tmp_path / "harm"
    harm = kind(target)
    content = {"callbacks": harm, "state_dict": {"weight": torch.arange(3.0), "extra": harm}}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    with open_tensors(tmp_path / "a.ckpt") as tensors:
        assert tensors["extra"] is None
        assert tensors["weight"].read().tolist() == [0, 1, 2]
    assert not target.exists()
    if kind is not BuiltWithState:
        torch.load(tmp_path / "a.ckpt", weights_only=False)
        assert target.exists(), "the file is not as dangerous as this test assumes"


def test_a_checkpoint_that_is_only_a_command_is_refused_and_does_not_run(tmp_path):
    target = tmp_path / "harm"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Command(target), protocol=2))
    torch.save(Command(target), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a usable checkpoint"):
            GLSCLModel.from_authors(str(tmp_path / name))
    assert not target.exists()


def archive(
    path: Path, pickled: bytes, data: bytes = bytes(16), compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write a zip in the layout of torch.save, with a hand-written pickle and one storage 0."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def tuple_of(*numbers: int) -> bytes:
    return b"(" + b"".join(map(number, numbers)) + b"t"


def entry(offset: int, shape: bytes, strides: bytes, *, name: str = "w", count: int = 4) -> bytes:
    """Pickle an entry of a state dict: a float32 tensor with any claimed sizes."""
    storage = (
        b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + number(count)
        + b"tQ"
    )
    made = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + shape
        + strides
        + b"\x89}tR"
    )
    return text(name) + made + b"s"


def state(*entries: bytes) -> bytes:
    return b"\x80\x02}" + b"".join(entries) + b"."


def refused(path: Path, message: str = "") -> None:
    with (
        pytest.raises(ValueError, match=f"{path.name} is not a usable checkpoint: .*{message}"),
        open_tensors(path) as tensors,
    ):
        for tensor in tensors.values():
            assert tensor is not None
            tensor.read()


SIZES = {
    "huge": (0, tuple_of(2**62), tuple_of(1)),
    "huge by a stride of nothing": (0, tuple_of(10**12), tuple_of(0)),
    "huge product": (0, tuple_of(2**31, 2**31, 2**31), tuple_of(0, 0, 0)),
    "huge and empty": (0, tuple_of(0, 2**62, 2**62), tuple_of(1, 1, 1)),
    "larger than any size": (0, tuple_of(10**30), tuple_of(1)),
    "past the end": (1, tuple_of(4), tuple_of(1)),
    "stride past the end": (0, tuple_of(2), tuple_of(4)),
    "before the start": (-1, tuple_of(4), tuple_of(1)),
    "negative stride": (3, tuple_of(4), tuple_of(-1)),
    "negative size": (0, tuple_of(-4), tuple_of(1)),
    "fewer strides": (0, tuple_of(2, 2), tuple_of(1)),
    "many dimensions": (0, tuple_of(*[1] * 1000), tuple_of(*[1] * 1000)),
    "not a tuple": (0, number(4), number(1)),
    "text": (0, b"(" + text("4") + b"t", tuple_of(1)),
}


@pytest.mark.parametrize("claim", SIZES)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, claim):
    refused(archive(tmp_path / "a.pt", state(entry(*SIZES[claim]))))


def test_a_hand_written_tensor_that_fits_is_read(tmp_path):
    content = struct.pack("<4f", 1, 2, 3, 4)
    with open_tensors(
        archive(tmp_path / "a.pt", state(entry(1, tuple_of(3), tuple_of(1))), content)
    ) as tensors:
        assert tensors["w"].read().tolist() == [2, 3, 4]


def test_a_storage_shorter_than_claimed_is_refused(tmp_path):
    whole = state(entry(0, tuple_of(1000), tuple_of(1), count=1000))
    refused(archive(tmp_path / "a.pt", whole, bytes(3996)), "3,996 bytes instead of 4,000")


def test_many_tensors_that_claim_the_same_bytes_are_refused(tmp_path):
    claims = []
    for number in range(50):
        claims.append(entry(0, tuple_of(10_000), tuple_of(1), name=f"w{number}", count=10_000))
    refused(archive(tmp_path / "a.pt", state(*claims), bytes(40_000)), "claim many times")


def test_a_compressed_record_is_refused_before_it_is_unpacked(tmp_path):
    whole = state(entry(0, tuple_of(10**7), tuple_of(1), count=10**7))
    path = archive(tmp_path / "bomb.pt", whole, bytes(4 * 10**7), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    refused(path, "compressed")


DEEP = 300_000
PICKLES = {
    "lists in lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * DEEP + b"Ns.",
    "a deep tuple as arguments": b"\x80\x02cos\nsystem\n)" + b"\x85" * DEEP + b"R.",
    "a deep tuple as a size": b"\x80\x02}" + entry(0, b")" + b"\x85" * DEEP, tuple_of(1)) + b".",
    "a memo of thousands of millions": b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".",
    "text of an exabyte": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
    "nothing to take": b"\x80\x02s.",
    "no mark": b"\x80\x02t.",
    "no such memo": b"\x80\x02h\x07.",
    "an extension": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "items for a number": b"\x80\x02K\x01K\x02a.",
    "a function instead of tensors": b"\x80\x02cos\nsystem\n.",
}


@pytest.mark.parametrize("pickled", PICKLES)
def test_a_pickle_that_is_not_a_state_dict_is_refused(tmp_path, pickled):
    refused(archive(tmp_path / "a.pt", PICKLES[pickled]))


@pytest.fixture(scope="module", params=["zip", "legacy", "safetensors"])
def whole(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / f"a.{request.param}"
    tensors = {"first": torch.arange(100.0), "second": torch.arange(50.0)}
    if request.param == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def test_a_file_cut_anywhere_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    for end in {*range(0, len(content), 97), len(content) - 1}:
        (tmp_path / "cut").write_bytes(content[:end])
        refused(tmp_path / "cut")


def test_a_changed_byte_in_a_tensor_of_an_archive_is_detected(tmp_path):
    torch.save({"w": torch.full((8,), 3.0)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(
        content.replace(torch.full((8,), 3.0).numpy().tobytes(), bytes(32))
    )
    refused(tmp_path / "a.pt", "CRC")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80", b"<html>not found</html>", b"\x89PNG\r\n", bytes(99)]
)
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt")


def test_a_zip_of_other_things_and_a_whole_pickled_module_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("photo.jpg", b"1")
    refused(tmp_path / "photos.zip", "not one that torch.save wrote")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    refused(
        tmp_path / "module.pt",
        "an object of 'torch.nn.modules.linear.Linear' instead of tensors by name",
    )


def test_a_file_of_the_other_byte_order_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", state(entry(0, tuple_of(4), tuple_of(1))))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", "big")
    refused(path, "byte order")


_CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), min_size=1, max_size=6
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=_CHANGES)
def test_a_file_with_any_changes_is_read_or_refused(whole, tmp_path, changes):
    content = bytearray(whole.read_bytes())
    for place, put in changes:
        at = int(place * min(len(content), 900))
        content[at : at + 1] = put
    (tmp_path / "a").write_bytes(content)
    read_or_refuse(tmp_path / "a")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=_CHANGES)
def test_a_pickle_with_any_changes_is_read_or_refused(tmp_path, changes):
    content = bytearray(
        state(
            entry(0, tuple_of(2, 2), tuple_of(2, 1)), entry(1, tuple_of(3), tuple_of(1), name="v")
        )
    )
    for place, put in changes:
        at = int(place * len(content))
        content[at : at + 1] = put
    read_or_refuse(archive(tmp_path / "a", bytes(content)))


def read_or_refuse(path: Path) -> None:
    """Assert that every tensor is no larger than the file, or that the error names the file."""
    size = path.stat().st_size
    try:
        with open_tensors(path) as tensors:
            for tensor in tensors.values():
                assert tensor is None or tensor.read().nbytes <= size
    except ValueError as error:
        assert str(path) in str(error)

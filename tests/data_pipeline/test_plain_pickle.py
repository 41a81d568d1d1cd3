"""Pickles of plain data, arrays and tensors are read exactly; nothing runs, all else is refused."""

from __future__ import annotations

import codecs
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.importing.plain_pickle import read_pickle
from data_pipeline.sources import align_bench
from tests.data_pipeline import official

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(_plain, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_is_read_as_pickle_would(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_read_exactly(dtype, protocol):
    whole = (torch.arange(60) % 3).reshape(3, 4, 5).to(dtype)
    views = {
        "whole": whole,
        "part": whole[1, 1:],
        "turned": whole[2].T,
        "none": whole[:0],
        "one": whole[0, 0, 1],
    }
    read = read_pickle(pickle.dumps([views], protocol))[0]
    for name, tensor in views.items():
        np.testing.assert_array_equal(read[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "<u2", ">i4", "int64", "float16", ">f8"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_and_numbers_of_numpy_are_read_exactly(dtype, protocol):
    whole = (np.arange(24) % 3).reshape(2, 3, 4).astype(dtype)
    arrays = {
        "whole": whole,
        "part": whole[1, 1:],
        "turned": whole[0].T,
        "none": whole[:0],
        "again": whole,
    }
    read = read_pickle(pickle.dumps([arrays, list(whole[0, 0])], protocol))
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[0][name], array, strict=True)
    assert read[1] == whole[0, 0].tolist()
    assert not any(isinstance(number, np.generic) for number in read[1])


class Command:
    """Creates a file if it is unpickled in the usual way."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def in_a_storage(harm: object) -> bytes:
    """A pickle whose tensor would be loaded by torch from a second, harmful one."""
    inner = pickle.dumps(harm, protocol=2)
    return b"ctorch.storage\n_load_from_bytes\n" + pickle.dumps((inner,), protocol=4)[11:-1] + b"R."


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_command_does_not_run_and_its_file_is_named(tmp_path, protocol):
    target = tmp_path / "harm"
    folder = Path(official.align_bench(tmp_path)[1])
    harmful = pickle.dumps({"caption": "a dog", "annotation": Command(target)}, protocol)
    (folder / "pkls" / "15.pkl").write_bytes(harmful)
    with pytest.raises(DataError, match=r"15\.pkl is refused: it names posix\.system"):
        align_bench.read(folder)
    assert not target.exists()
    pickle.loads(harmful)
    assert target.exists(), "the file is not as dangerous as this test takes it to be"


def test_a_command_inside_a_tensors_storage_does_not_run(tmp_path):
    target = tmp_path / "harm"
    harmful = in_a_storage(Command(target))
    with pytest.raises(ValueError, match=r"it names posix\.system"):
        read_pickle(harmful)
    assert not target.exists()
    with pytest.raises(RuntimeError):  # of torch, when it has run the command
        pickle.loads(harmful)
    assert target.exists(), "the file is not as dangerous as this test takes it to be"


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        1 + 2j,
        Path("a"),
        np.array(["a"]),
        np.array([None]),
        np.array([{"a": Path("a")}], dtype=object),
        np.complex64(1),
        np.datetime64("2020"),
        np.array([(1, 2.0)], dtype="i4,f8"),
        np.ma.array([1]),
        len,
        dict,
        OrderedDict,
        (OrderedDict,),
        bytearray(b"a"),
        torch.arange(3).to(torch.bfloat16),
        torch.nn.Parameter(torch.zeros(2)),
        torch.arange(3).to_sparse(),
        {(1, 2): 3},
    ],
    ids=str,
)
def test_pickles_of_anything_else_are_refused(value):
    with pytest.raises(ValueError, match="it (names|uses|has|holds)"):
        read_pickle(pickle.dumps({"value": value}))


def test_a_refusal_does_not_print_what_the_pickle_holds():
    """A few bytes can stand for data that double with each level."""
    nested: list = []
    for _ in range(16):
        nested = [nested, nested]

    class Encoded:
        def __reduce__(self):
            return codecs.encode, ("a", nested)

    module = (
        pickle.dumps(nested, 4)[:-1] + b"\x8c\x01a\x93."
    )  # SHORT_BINUNICODE, STACK_GLOBAL, STOP
    for harmful, expected in (
        (pickle.dumps(Encoded(), 2), "it encodes text with something else"),
        (module, "not text"),
    ):
        with pytest.raises(ValueError, match=expected) as refused:
            read_pickle(harmful)
        assert len(str(refused.value)) < 100


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_read_and_nothing_else_happens(noise):
    try:
        read_pickle(noise)
    except ValueError as error:
        assert str(error)


def test_every_cut_of_a_real_pickle_is_refused():
    whole = pickle.dumps(
        {"caption": "a", "mask": torch.ones(2, 2, dtype=torch.bool), "box": np.ones(4)}, 4
    )
    for end in range(len(whole)):
        with pytest.raises(ValueError):
            read_pickle(whole[:end])


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((1000,), (0,), 0),
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2**62,), (1,), 0),
        ((2, 2), (1,), 0),
        ((-4,), (1,), 0),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(shape, strides, offset):
    class Claims:
        def __reduce__(self):
            storage = torch.zeros(4).untyped_storage()
            typed = torch.storage.TypedStorage(
                wrap_storage=storage, dtype=torch.float32, _internal=True
            )
            return torch._utils._rebuild_tensor_v2, (
                typed,
                offset,
                shape,
                strides,
                False,
                OrderedDict(),
            )

    with pytest.raises(ValueError, match="it holds a tensor"):
        read_pickle(pickle.dumps(Claims()))


class Rebuilt:
    """Pickled as an array of numpy would be, with another shape, type or content."""

    def __init__(self, shape: object, dtype: object, content: object):
        self.state = (1, shape, dtype, False, content)

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    ("shape", "dtype", "content"),
    [
        ((3,), np.dtype("f4"), b"0123"),
        ((2**62,), np.dtype("f4"), b"0123"),
        ((-1,), np.dtype("f4"), b"0123"),
        ((1,) * 9, np.dtype("f4"), b"0123"),
        ([1], np.dtype("f4"), b"0123"),
        ((1,), "f4", b"0123"),
        ((1,), np.dtype("f4"), "0123"),
        ((1,), np.dtype("O"), [os.system]),
    ],
)
def test_an_array_that_differs_from_its_description_is_refused(shape, dtype, content):
    with pytest.raises(ValueError, match="it (holds|names)"):
        read_pickle(pickle.dumps(Rebuilt(shape, dtype, content), 4))


def test_the_state_of_anything_else_is_refused():
    class Plain:
        def __reduce__(self):
            return OrderedDict, (), {"a": 1}

    with pytest.raises(ValueError, match="sets the state of something without a state"):
        read_pickle(pickle.dumps(Plain(), 4))
    built = pickle.dumps(np.arange(3), 4)
    with pytest.raises(ValueError, match="without content"):
        read_pickle(built[: built.rindex(b"(")] + b".")


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b"K\x04Ntq", b"K\x08Ntq"),
        (b"a.\x04", b"a.\x05"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    ],
)
def test_a_storage_that_differs_from_its_description_is_refused(was, becomes):
    whole = pickle.dumps(torch.zeros(4))
    assert was in whole
    with pytest.raises(ValueError, match="a tensor's storage is"):
        read_pickle(whole.replace(was, becomes))

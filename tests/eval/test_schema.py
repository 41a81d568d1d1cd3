"""A result is written whole, read back equal, and refused with a clear line when it is not one."""

import tracemalloc
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_pipeline.errors import DataError, UsageError
from eval.results.schema import (
    Metric,
    Result,
    check_out,
    environment,
    read_records,
    read_result,
    records_of_file,
    write_result,
)


def result(**changes) -> Result:
    metric = Metric(
        name="text_to_image/R@1", value=12.5, unit="percent", ci95=(10.0, 15.0), n=40, chance=0.2
    )
    parts = {
        "stage": "retrieval",
        "protocol": {},
        "data": {},
        "model": {},
        "environment": environment(),
    }
    return Result(**parts | {"metrics": [metric]} | changes)


def test_a_result_is_read_back_equal(tmp_path: Path) -> None:
    write_result(tmp_path / "out", result(), [{"query": 0, "text": "ein Würfel"}])
    read = read_result(tmp_path / "out")
    assert read == result(environment=read.environment, records=read.records)
    assert read.records is not None and read.records.count == 1
    assert list(read_records(tmp_path / "out")) == [{"query": 0, "text": "ein Würfel"}]
    assert '"schema": "glscl-result/1"' in (tmp_path / "out" / "result.json").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "result.json",
        "samples.jsonl",
    ]


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        Metric(name="R@1", value=float("nan"), unit="percent", n=1)
    with pytest.raises(ValueError):
        write_result(tmp_path, result(), [{"score": float("inf")}])
    assert not (tmp_path / "result.json").exists()


def test_a_record_that_cannot_be_written_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write_result(tmp_path, result(), [{"query": 0}])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        write_result(tmp_path, result(), [{"query": 1}, {"score": float("nan")}])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_records_are_never_in_memory_together(tmp_path: Path) -> None:
    tracemalloc.start()
    write_result(
        tmp_path, result(), ({"query": number, "text": "x" * 1000} for number in range(10_000))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "samples.jsonl").stat().st_size > 10_000_000 and peak < 2_000_000


def test_a_file_that_is_not_a_result_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no result\.json"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"stage": "retrieval"}')
    with pytest.raises(DataError, match="is not a glscl-result/1 result: protocol"):
        read_result(tmp_path)
    write_result(tmp_path, result(schema="glscl-result/9"), [])
    with pytest.raises(DataError, match="has schema 'glscl-result/9'"):
        read_result(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(read_records(tmp_path))


def test_the_checksum_of_records_notices_every_change_but_their_order(tmp_path: Path) -> None:
    write_result(tmp_path, result(), [{"query": number} for number in range(5)])
    written = read_result(tmp_path).records
    file = tmp_path / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(lines)))
    assert records_of_file(tmp_path) == written
    for changed in (lines[1:], [*lines, lines[0]], [*lines[:4], '{"query": 5}\n']):
        file.write_text("".join(changed))
        assert records_of_file(tmp_path) != written


def test_a_result_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    write_result(tmp_path, result(), [])
    with pytest.raises(UsageError, match="already holds a result.*--overwrite"):
        check_out(tmp_path, overwrite=False)
    check_out(tmp_path, overwrite=True)
    check_out(tmp_path / "new" / "folder", overwrite=False)
    with pytest.raises(UsageError, match="is a file"):
        check_out(tmp_path / "result.json" / "below", overwrite=False)


def test_an_unknown_metric_is_a_key_error() -> None:
    assert result().metric("text_to_image/R@1").value == 12.5
    with pytest.raises(KeyError):
        result().metric("R@2")

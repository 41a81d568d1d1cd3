"""A file that cannot be written leaves nothing behind."""

from pathlib import Path

import pytest

from data_pipeline.files import write_whole


def test_a_failed_write_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(OSError, match="taken.json"):
        write_whole(tmp_path / "taken.json", "{}")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "new.json", "\ud800")
    assert [each.name for each in tmp_path.iterdir()] == ["taken.json"]

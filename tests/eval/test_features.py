"""The cache of features: nothing is encoded twice, and foreign features are never used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from eval.encoding import features
from eval.encoding.features import Images, LoadedModel, Texts, encode_images, encode_texts, load
from pretrain.model import GLSCLModel

from .conftest import PICTURES, save_model

TEXTS = [
    "a red square",
    "a blue circle above a red square",
    "nothing",
    "a red square",
    "two",
    "three moons",
    "a star",
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IMAGES_PER_BLOCK", 3)
    monkeypatch.setattr(features, "TEXTS_PER_BLOCK", 2)


class Encoding:
    """A loaded model that counts the calls of its encoders and is killed at one of them."""

    def __init__(self, model: Path, cache: Path | None, killed_at: int | None = None) -> None:
        self.loaded: LoadedModel = load(model, cache=cache)
        self.calls, self.killed_at = 0, killed_at
        for encoder in (self.loaded.model.image_projection, self.loaded.model.text_projection):
            encoder.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.calls += 1

    def images(self, data: Path, **options) -> Images:
        return encode_images(self.loaded, Manifest.load(data), **options)

    def texts(self, texts: list[str] = TEXTS) -> Texts:
        return encode_texts(self.loaded, texts)


def same(left: Images, right: Images) -> bool:
    equal = np.array_equal(left.features, right.features) and torch.equal(left.tokens, right.tokens)
    others = ("keys", "captions", "annotations", "frames", "unreadable")
    return (
        equal
        and list(left.row) == list(right.row)
        and all(getattr(left, n) == getattr(right, n) for n in others)
    )


def written(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}


def test_cached_features_equal_computed_ones_and_are_not_computed_again(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    plain, first = Encoding(knowing_model, None), Encoding(knowing_model, tmp_path)
    images, texts = plain.images(gallery), plain.texts()
    assert same(first.images(gallery), images)
    assert torch.equal(first.texts().tokens, texts.tokens)
    assert first.calls == 7 + 3
    files = written(tmp_path)
    again = Encoding(knowing_model, tmp_path)
    assert same(again.images(gallery), images)
    texts_again = again.texts()
    assert np.array_equal(texts_again.features, texts.features) and torch.equal(
        texts_again.mask, texts.mask
    )
    assert again.calls == 0
    assert written(tmp_path) == files


def test_a_killed_evaluation_resumes_where_it_stopped(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Encoding(knowing_model, tmp_path, killed_at=3).images(gallery)
    before = written(tmp_path)
    assert len(before) == 3
    rest = Encoding(knowing_model, tmp_path)
    assert same(rest.images(gallery), Encoding(knowing_model, None).images(gallery))
    assert rest.calls == 4
    assert before.items() < written(tmp_path).items()


def test_a_limited_evaluation_shares_its_complete_blocks(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    Encoding(knowing_model, tmp_path).images(gallery, limit=7)
    rest = Encoding(knowing_model, tmp_path)
    assert len(rest.images(gallery).keys) == PICTURES
    assert rest.calls == 5


def test_another_model_under_the_same_name_is_encoded_again(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    """The same model under another name is not encoded again."""
    folder, cache = tmp_path / "model", tmp_path / "cache"
    model = GLSCLModel.from_pretrained(knowing_model)
    save_model(model, tokenizer, folder)
    Encoding(folder, cache).images(gallery)
    moved = Encoding(folder.rename(tmp_path / "moved"), cache)
    moved.images(gallery)
    assert moved.calls == 0
    with torch.no_grad():
        model.image_projection.bias.add_(1)
    other = Encoding(save_model(model, tokenizer, folder), cache)
    assert same(other.images(gallery), Encoding(folder, None).images(gallery))
    assert other.calls == 7


def test_other_data_precision_and_texts_are_encoded_again(
    knowing_model: Path, gallery: Path, tmp_path: Path, jpeg: bytes
) -> None:
    encoding = Encoding(knowing_model, tmp_path)
    encoding.images(gallery)
    write_shards(
        tmp_path / "one", [("a", {"jpg": jpeg, "txt": b"red"})], source={"name": "scenes-test"}
    )
    assert len(encoding.images(tmp_path / "one").keys) == 1
    assert encoding.calls == 8
    encoding.texts(["a red square"])
    encoding.texts(["a red circle"])
    assert encoding.calls == 10
    half = load(knowing_model, "bf16", tmp_path)
    assert encode_images(half, Manifest.load(gallery)).tokens.dtype == torch.bfloat16


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_format(path: Path) -> None:
    save_file({"features": torch.zeros(3, 32)}, path)


@pytest.mark.parametrize("damage", [cut, flip, empty, another_format])
def test_a_damaged_file_is_reported_and_computed_again(
    knowing_model: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:
    images = Encoding(knowing_model, tmp_path).images(gallery)
    damaged = sorted(written(tmp_path))[2]
    damage(damaged)
    again = Encoding(knowing_model, tmp_path)
    assert same(again.images(gallery), images)
    assert again.calls == 1
    assert f"features in {damaged} are damaged" in capsys.readouterr().err


def test_a_file_with_the_content_of_another_is_refused(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    Encoding(knowing_model, tmp_path).images(gallery)
    left, right, *_ = sorted(written(tmp_path))
    (left.parent / "0000.safetensors").write_bytes(left.read_bytes())  # a name that no block has
    assert Encoding(knowing_model, tmp_path).images(gallery).keys
    right.write_bytes(left.read_bytes())
    with pytest.raises(
        DataError, match=f"another model or other data.*remove the folder {left.parent}, or name"
    ):
        Encoding(knowing_model, tmp_path).images(gallery)


def test_features_that_are_not_finite_are_refused_and_not_cached(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.image_projection.bias.fill_(float("nan"))
    broken = save_model(model, tokenizer, tmp_path / "broken")
    for _ in range(2):
        with pytest.raises(NumericsError, match="not finite for 20 of 20"):
            Encoding(broken, tmp_path / "cache").images(gallery)
    assert not written(tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_named(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot keep features in .*file: .*: name another folder"):
        Encoding(knowing_model, tmp_path / "file").images(gallery)


def test_cached_files_hold_only_tensors_and_json(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    Encoding(knowing_model, tmp_path).images(gallery, limit=2)
    (path,) = written(tmp_path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"features", "tokens"}
    assert not list(tmp_path.rglob("*.tmp"))

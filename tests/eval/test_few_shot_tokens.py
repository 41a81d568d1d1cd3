"""Tokens of labelled images: values of each kind of encoder, the cache, and what is refused."""

import io
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from eval.encoding import labelled_images as tokens
from eval.encoding.encoders import Encoder, equally_spaced, load_encoder
from eval.encoding.features import encode_images, encode_texts, load, processes
from eval.encoding.labelled_images import (
    ImageTokens,
    encode_tokens,
    pool_patches,
    read_pixels,
)
from eval.encoding.prompts import label_features
from pretrain.export import export
from pretrain.model import GLSCLConfig, GLSCLModel
from tests.ranks import run_ranks

from .conftest import PICTURES, WIDTH, save_model

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
STATISTICS = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]  # of the CLIP model's pixels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "IMAGES_PER_BLOCK", 8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random CLIP model of 3 blocks and 4 x 4 patches, with its preprocessing."""
    folder = tmp_path_factory.mktemp("clip")
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "red", "blue", "star"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 1), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=STATISTICS[0], image_std=STATISTICS[1]).save_pretrained(folder)
    torch.manual_seed(3)
    text = {"vocab_size": len(words), "max_position_embeddings": 12, "num_hidden_layers": 2}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"image_size": 48, "patch_size": 12, "num_hidden_layers": 3}
    config = CLIPConfig(text_config=text | TOWER, vision_config=vision | TOWER, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tokenizer: Path, knowing_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random model whose image tower has no class token of its own."""
    torch.manual_seed(4)
    text = GLSCLConfig.from_pretrained(knowing_model).text_config
    vision = SiglipVisionConfig(image_size=48, patch_size=16, num_hidden_layers=2, **TOWER)
    config = GLSCLConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=16,
        max_text_length=40,
        hidden_size=WIDTH,
        fusion_layers=1,
        fusion_heads=2,
        fusion_intermediate_size=48,
    )
    return save_model(GLSCLModel(config), tokenizer, tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def exported(knowing_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(knowing_model, tmp_path_factory.mktemp("export") / "towers")


def images_of(encoder: Encoder, data: Path) -> torch.Tensor:
    (batch,) = evaluation_batches(Manifest.load(data), size=encoder.image_size, batch_size=PICTURES)
    return batch.pixels


def same(left: ImageTokens, right: ImageTokens) -> bool:
    fields = ("keys", "labels", "annotations", "media", "grid")
    tensors = [(left.cls, right.cls), (left.patch, right.patch), (left.proj, right.proj)]
    tensors += [(left.layers[number], right.layers[number]) for number in left.layers]
    equal = all(a is b is None or torch.equal(a, b) for a, b in tensors)
    equal = equal and left.layers.keys() == right.layers.keys()
    return equal and all(getattr(left, name) == getattr(right, name) for name in fields)


def test_tokens_of_a_model_equal_those_of_retrieval_and_fusion(
    knowing_model: Path, gallery: Path
) -> None:
    encoder = load_encoder(knowing_model)
    encoded = encode_tokens(encoder, Manifest.load(gallery), layers=(1,))
    images = encode_images(load(knowing_model), Manifest.load(gallery))
    assert (
        encoded.keys == images.keys
        and encoded.grid == encoder.grid == (3, 3)
        and len(encoded) == PICTURES
    )
    assert encoded.cls.shape == (PICTURES, WIDTH) and encoded.patch.shape == (PICTURES, 9, WIDTH)
    assert encoded.layers[1].shape == (PICTURES, 10, WIDTH)
    torch.testing.assert_close(encoded.cls, images.tokens[:, 0])
    torch.testing.assert_close(encoded.patch.float(), images.tokens[:, 1:], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(encoded.proj, torch.from_numpy(images.features[images.row]))
    assert encoded.labels[0] == tuple(encoded.annotations[0]["labels"]) != ()


def test_patches_are_averaged_to_the_requested_grid(knowing_model: Path, gallery: Path) -> None:
    encoder = load_encoder(knowing_model)
    whole = encode_tokens(encoder, Manifest.load(gallery), layers=(1,), pool_grid=7)
    pooled = encode_tokens(encoder, Manifest.load(gallery), layers=(1,), pool_grid=2)
    assert pooled.grid == (2, 2) and pooled.patch.shape[1] == 4 and pooled.layers[1].shape[1] == 5
    torch.testing.assert_close(
        pooled.patch, pool_patches(whole.patch, (3, 3), 2), rtol=2e-3, atol=2e-3
    )
    torch.testing.assert_close(pooled.layers[1][:, 0], whole.layers[1][:, 0])


def normalized(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels.movedim(-1, 1) / 255 - mean) / std


def test_layers_are_the_hidden_states_of_the_stock_tower(
    knowing_model: Path, clip: Path, gallery: Path
) -> None:
    config = GLSCLConfig.from_pretrained(knowing_model)
    for folder, name, statistics in (
        (knowing_model, "vision", (config.image_mean, config.image_std)),
        (clip, "vision_model", STATISTICS),
    ):
        encoder = load_encoder(folder)
        pixels = images_of(encoder, gallery)
        layers = encoder.encode(pixels, range(1, encoder.depth + 1)).layers
        tower = getattr(encoder.module, name)
        states = tower(
            pixel_values=normalized(pixels, *statistics), output_hidden_states=True
        ).hidden_states
        assert list(layers) == list(range(1, len(states)))
        for number, layer in layers.items():
            torch.testing.assert_close(layer, states[number])


def test_a_tower_without_a_class_token_uses_that_of_the_model(siglip: Path, gallery: Path) -> None:
    encoded = encode_tokens(load_encoder(siglip), Manifest.load(gallery), layers=(1, 2))
    assert list(encoded.layers) == [1, 2]
    for tokens_of_layer in encoded.layers.values():
        assert tokens_of_layer.shape == (PICTURES, 10, 32)
    assert encoded.cls.shape == (PICTURES, WIDTH) and encoded.proj.shape == (PICTURES, 16)


def test_an_exported_tower_gives_the_tokens_before_the_projection(
    knowing_model: Path, exported: Path, gallery: Path
) -> None:
    full, tower = load_encoder(knowing_model), load_encoder(exported)
    pixels = images_of(full, gallery)
    expected, exported_tokens = full.encode(pixels, (1,)), tower.encode(pixels, (1,))
    torch.testing.assert_close(
        full.module.image_projection(exported_tokens.tokens), expected.tokens
    )
    torch.testing.assert_close(exported_tokens.layers[1], expected.layers[1])
    assert (
        not tower.joint
        and exported_tokens.proj is None
        and encode_tokens(tower, Manifest.load(gallery)).proj is None
    )
    with pytest.raises(UsageError, match="no space that images share with texts .*exported from"):
        label_features(tower, ["red star"])


def test_a_stock_clip_model_gives_the_embeddings_of_transformers(clip: Path, gallery: Path) -> None:
    encoder = load_encoder(clip)
    model = CLIPModel.from_pretrained(clip)
    pixels = images_of(encoder, gallery)
    prepared = normalized(pixels, *STATISTICS)
    ids = torch.tensor([[1, 4, 7, 9, 2], [1, 4, 8, 9, 2]])
    expected = model(pixel_values=prepared, input_ids=ids)
    encoded = encode_tokens(encoder, Manifest.load(gallery))
    assert encoder.joint and encoder.grid == (4, 4) and encoder.depth == 3
    torch.testing.assert_close(encoded.proj, expected.image_embeds)
    torch.testing.assert_close(encoded.cls, model.vision_model(prepared).pooler_output)
    texts = torch.from_numpy(encoder.encode_texts(["a red star", "a blue star"]))
    torch.testing.assert_close(texts, expected.text_embeds)


def test_label_features_are_the_mean_over_the_sentences(knowing_model: Path) -> None:
    features = label_features(
        load_encoder(knowing_model), ["red star", "blue moon"], ["a {}", "the {}"]
    )
    texts = encode_texts(
        load(knowing_model), ["a red star", "the red star", "a blue moon", "the blue moon"]
    )
    mean = torch.from_numpy(texts.features[texts.row]).reshape(2, 2, -1).mean(1)
    torch.testing.assert_close(features, torch.nn.functional.normalize(mean, dim=-1))


def test_heads_and_encoder_can_be_trained_on_encoded_tokens(
    knowing_model: Path, clip: Path, gallery: Path
) -> None:
    for folder in (knowing_model, clip):
        encoder = load_encoder(folder)
        cached = encode_tokens(encoder, Manifest.load(gallery), limit=2)
        head = torch.nn.Linear(cached.cls.shape[1], 1)
        head(cached.cls).sum().backward()
        encoded = encoder.encode(
            read_pixels(Manifest.load(gallery), [0, 1], encoder.image_size), (1,)
        )
        (encoded.tokens.sum() + encoded.layers[1].square().sum()).backward()
        gradients = [p.grad for p in encoder.module.parameters() if p.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_cached_tokens_equal_computed_ones(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    data = Manifest.load(gallery)
    plain = encode_tokens(load_encoder(knowing_model), data, layers=(1,))
    cached = encode_tokens(load_encoder(knowing_model, cache=tmp_path), data, layers=(1,))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = encode_tokens(load_encoder(knowing_model, cache=tmp_path), data, layers=(1,))
    assert same(plain, cached) and same(plain, again) and len(files) == 3
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_other_layers_grids_and_models_have_their_own_cache(
    knowing_model: Path, exported: Path, gallery: Path, tmp_path: Path
) -> None:
    data = Manifest.load(gallery)
    for folder, options in (
        (knowing_model, {}),
        (knowing_model, {"layers": (1,)}),
        (knowing_model, {"pool_grid": 2}),
        (exported, {}),
    ):
        encoder = load_encoder(folder, cache=tmp_path)
        assert same(
            encode_tokens(encoder, data, **options),
            encode_tokens(load_encoder(folder), data, **options),
        )
    assert len(list(tmp_path.iterdir())) == 4


def test_tokens_of_another_model_are_never_used(
    knowing_model: Path, siglip: Path, gallery: Path, tmp_path: Path
) -> None:
    data = Manifest.load(gallery)
    encode_tokens(load_encoder(siglip, cache=tmp_path / "other"), data)
    encode_tokens(load_encoder(knowing_model, cache=tmp_path / "own"), data)
    (other,), (ours_folder,) = ((tmp_path / name).iterdir() for name in ("other", "own"))
    for theirs, ours in zip(sorted(other.iterdir()), sorted(ours_folder.iterdir()), strict=True):
        shutil.copyfile(theirs, ours)
    with pytest.raises(
        DataError, match=f"another model or other data.*remove the folder {ours_folder}"
    ):
        encode_tokens(load_encoder(knowing_model, cache=tmp_path / "own"), data)


def test_a_damaged_file_is_reported_and_encoded_again(
    knowing_model: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Manifest.load(gallery)
    first = encode_tokens(load_encoder(knowing_model, cache=tmp_path), data)
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert same(encode_tokens(load_encoder(knowing_model, cache=tmp_path), data), first)
    assert f"features in {damaged} are damaged" in capsys.readouterr().err


def test_a_limit_takes_the_first_images(knowing_model: Path, gallery: Path) -> None:
    encoder, data = load_encoder(knowing_model), Manifest.load(gallery)
    few, all_ = encode_tokens(encoder, data, limit=11), encode_tokens(encoder, data)
    assert few.keys == all_.keys[:11]
    torch.testing.assert_close(few.cls, all_.cls[:11])


def test_tokens_do_not_depend_on_the_division_into_blocks(
    knowing_model: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = load_encoder(knowing_model), Manifest.load(gallery)
    wide = encode_tokens(encoder, data, layers=(1,), batch_size=4)
    monkeypatch.setattr(tokens, "IMAGES_PER_BLOCK", 12)
    # Blocks of 12 have the same batches, and so the same bits.
    assert same(encode_tokens(encoder, data, layers=(1,), batch_size=4), wide)
    torch.testing.assert_close(encode_tokens(encoder, data, batch_size=3).cls, wide.cls)


def encode_on_this_rank(model: Path, data: Path, out: Path) -> None:
    """Encode in blocks of 8 images together with other ranks, and write the tokens to a file."""
    tokens.IMAGES_PER_BLOCK = 8
    encoded = encode_tokens(load_encoder(model), Manifest.load(data), layers=(1,))
    assert processes().num_processes == 2
    (out / str(processes().process_index)).write_bytes(pickle.dumps(encoded))


@pytest.mark.slow
def test_two_processes_encode_the_same_tokens(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    run_ranks(2, encode_on_this_rank, knowing_model, gallery, tmp_path)
    alone = encode_tokens(load_encoder(knowing_model), Manifest.load(gallery), layers=(1,))
    for rank in "01":
        assert same(pickle.loads((tmp_path / rank).read_bytes()), alone)


def test_images_are_read_by_their_positions(gallery: Path) -> None:
    data = Manifest.load(gallery)
    (batch,) = evaluation_batches(data, size=48, batch_size=PICTURES)
    assert torch.equal(read_pixels(data, [7, 0, 7], 48), batch.pixels[[7, 0, 7]])


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def one_image(folder: Path, pixels: np.ndarray, annotations: dict[str, object]) -> Manifest:
    members = {"png": png(pixels), "json": json.dumps(annotations).encode()}
    write_shards(folder, [("one", members)], source={"name": "boxes"})
    return Manifest.load(folder)


def test_an_image_with_a_box_is_encoded_as_its_crop(knowing_model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    encoder = load_encoder(knowing_model, cache=tmp_path / "cache")
    cases = [
        ([13.5, 4.1, 48.5, 30.7], pixels[4:31, 14:48]),
        ([-5, 10, 900, 900], pixels[10:]),
        ([3, 3, 4, 4], pixels[3:4, 3:4]),
    ]
    whole = encode_tokens(encoder, one_image(tmp_path / "whole", pixels, {}))
    for number, (box, inside) in enumerate(cases):
        boxed = one_image(tmp_path / f"{number} box", pixels, {"box": box})
        crop = one_image(tmp_path / f"{number} crop", np.ascontiguousarray(inside), {})
        encoded = encode_tokens(encoder, boxed, layers=(1,))
        expected = encode_tokens(encoder, crop, layers=(1,))
        assert torch.equal(encoded.cls, expected.cls)
        assert torch.equal(encoded.layers[1], expected.layers[1])
        assert torch.equal(read_pixels(boxed, [0], 48), read_pixels(crop, [0], 48))
        assert not torch.equal(encoded.cls, whole.cls)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([60, 0, 70, 9], "no pixel of the image, which has 60 x 40"),
        ([9, 9, 9.2, 20], "no pixel of the image"),
        ([1, 2, 3], '"box" must be'),
        ("all", '"box" must be'),
        ([0, 0, True, 5], '"box" must be'),
    ],
)
def test_an_empty_box_is_an_error_that_names_the_sample(
    knowing_model: Path, tmp_path: Path, box: object, message: str
) -> None:
    data = one_image(tmp_path / "data", np.zeros((40, 60, 3), np.uint8), {"box": box})
    with pytest.raises(DataError, match=f"one cannot be evaluated: .*{message}"):
        encode_tokens(load_encoder(knowing_model), data)


def test_images_need_no_labels_but_labels_must_be_names(
    knowing_model: Path, jpeg: bytes, tmp_path: Path
) -> None:
    encoder = load_encoder(knowing_model)
    cases = [(None, ()), ([], ()), (["cat", "dog", "cat"], ("cat", "dog"))]
    cases += [("cat", None), ([3], None), ([" "], None)]
    for number, (labels, expected) in enumerate(cases):
        folder = tmp_path / str(number)
        members = {"jpg": jpeg, "json": json.dumps({"labels": labels}).encode()}
        write_shards(folder, [("one", members)], source={"name": "labelled"})
        if expected is None:
            with pytest.raises(DataError, match=r'one: "labels" must be a list of names'):
                encode_tokens(encoder, Manifest.load(folder))
        else:
            assert encode_tokens(encoder, Manifest.load(folder)).labels == [expected]


@pytest.mark.parametrize("block", [0, 2, -1])
def test_a_block_that_does_not_exist_is_refused(
    knowing_model: Path, gallery: Path, block: int
) -> None:
    with pytest.raises(UsageError, match=f"blocks 1 to 1, not {block}"):
        encode_tokens(load_encoder(knowing_model), Manifest.load(gallery), layers=(block,))


def test_tokens_that_are_not_finite_are_refused(
    knowing_model: Path, tokenizer: Path, gallery: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.image_projection.bias.fill_(1e6)  # more than float16 can hold
    folder = save_model(model, tokenizer, tmp_path / "model")
    with pytest.raises(
        NumericsError, match=r"tokens \(patch\) are not finite for 20 of 20 images, the first is"
    ):
        encode_tokens(load_encoder(folder, cache=tmp_path / "cache"), Manifest.load(gallery))


def test_wrong_folders_are_refused_with_a_clear_message(
    clip: Path, exported: Path, knowing_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no model at .*nowhere"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="one tower of an export: name .*towers"):
        load_encoder(exported / "vision")
    with pytest.raises(UsageError, match="holds a roberta model: name a GLSCL model"):
        load_encoder(exported / "text")
    with pytest.raises(UsageError, match="precision is 'fp8'"):
        load_encoder(clip, "fp8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a model nor a checkpoint"):
        load_encoder(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer", "processor", "lacking"])
def test_a_damaged_clip_folder_is_refused_with_a_clear_message(
    clip: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(clip, tmp_path / "clip")
    message = "cannot be loaded"
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"nothing")
    elif damage == "config":
        (folder / "config.json").write_text("{")
        message = "config.json cannot be read"
    elif damage == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "processor":
        next(folder.glob("*processor*")).unlink()
        message = "does not say how images are normalized"
    else:
        weights = load_file(folder / "model.safetensors")
        weights.pop("visual_projection.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        message = "lacks 1 weights, the first is visual_projection"
    with pytest.raises(DataError, match=message):
        load_encoder(folder)


def test_an_exported_folder_with_another_kind_of_tower_is_refused(
    clip: Path, exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "towers")
    shutil.rmtree(folder / "vision")
    shutil.copytree(clip, folder / "vision")
    with pytest.raises(DataError, match="does not hold a CLIPVisionModel: export"):
        load_encoder(folder)
    assert isinstance(load_encoder(exported).module, CLIPVisionModel)


def test_layers_are_equally_spaced_and_include_the_last() -> None:
    assert (
        equally_spaced(12) == (3, 6, 9, 12)
        and equally_spaced(2) == (1, 2)
        and equally_spaced(11) == (3, 6, 9, 11)
    )


def test_projected_class_tokens_equal_the_features_of_the_joint_space(
    knowing_model: Path, clip: Path, exported: Path, gallery: Path
) -> None:
    for path in (knowing_model, clip):
        encoder = load_encoder(path)
        with torch.no_grad():
            encoded = encoder.encode(images_of(encoder, gallery))
            projected = encoder.project(encoded.tokens)
        assert projected.shape[:2] == encoded.tokens.shape[:2]
        torch.testing.assert_close(
            torch.nn.functional.normalize(projected[:, 0], dim=-1), encoded.proj
        )
    with pytest.raises(UsageError, match="no space that images share with texts"):
        load_encoder(exported).project(torch.zeros(1, WIDTH))

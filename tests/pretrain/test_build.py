"""Models that start from published towers, in all layouts of the hub, or from another model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    SiglipConfig,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from data_pipeline.errors import UsageError
from data_pipeline.text import Tokenizer
from pretrain.build import build_model, load_weights
from pretrain.config import ModelConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from tests.pretrain.models import texts, tiny_model

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
VISION = TOWER | {"num_hidden_layers": 3, "patch_size": 8, "image_size": 32}
SMALL_VISION = TOWER | {"patch_size": 8, "image_size": 32}
SMALL_TEXT = TOWER | {"max_position_embeddings": 60}


@pytest.fixture(scope="module")
def words(tokenizer):
    return Tokenizer.load(tokenizer).vocab_size


def saved(model, folder):
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return saved(
        CLIPModel(CLIPConfig(vision_config=VISION, text_config=TOWER)),
        tmp_path_factory.mktemp("clip"),
    )


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TOWER))
    return saved(model, tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory, words):
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=words, **SMALL_TEXT))
    return saved(model, tmp_path_factory.mktemp("roberta"))


def build(tokenizer, fusion=None, **fields):
    sizes = {
        "hidden_size": 32,
        "fusion_layers": 1,
        "fusion_heads": 2,
        "fusion_intermediate_size": 64,
    }
    fields = {"vision": SMALL_VISION} | fields if "vision_from" not in fields else fields
    fields = {"text": SMALL_TEXT} | fields if "text_from" not in fields else fields
    config = ModelConfig(fusion=sizes | (fusion or {}), **fields)
    return build_model(config, Tokenizer.load(tokenizer), 32).eval()


def rewrite(folder, out, change, **settings):
    """Copy a model folder with changed weights and other settings in its config.json."""
    out.mkdir()
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | settings))
    return out


@torch.no_grad()
def assert_vision_is(model, theirs):
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.vision(pixels).last_hidden_state, theirs(pixels).last_hidden_state)
    assert model.vision.dtype == torch.float32


@torch.no_grad()
def assert_text_is(model, theirs):
    ids, mask = texts(3)
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = model.encode_text(ids, mask)
    torch.testing.assert_close(
        ours[mask == 1], model.text_projection(expected)[mask == 1], atol=1e-6, rtol=0
    )
    first = model.encode_text(ids, mask, need="first")
    torch.testing.assert_close(first, ours[:, :1], atol=1e-6, rtol=0)


def test_towers_get_the_weights_of_the_folders(clip, roberta, tokenizer):
    model = build(tokenizer, vision_from=str(clip[0]), text_from=str(roberta[0]))
    assert_vision_is(model, clip[1].vision_model)
    assert_text_is(model, roberta[1].roberta)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_image_tower_loads_from_its_own_folder_and_from_a_dual_encoder(
    family, request, tokenizer, tmp_path
):
    folder, model = request.getfixturevalue(family)
    model.vision_model.save_pretrained(tmp_path)
    assert_vision_is(build(tokenizer, vision_from=str(tmp_path)), model.vision_model)
    assert_vision_is(build(tokenizer, vision_from=str(folder)), model.vision_model)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_layouts_of_transformers_4_load_too(family, request, tokenizer, tmp_path):
    folder, model = request.getfixturevalue(family)

    def with_buffers(tensors):
        positions = len(tensors["vision_model.embeddings.position_embedding.weight"])
        return tensors | {"vision_model.embeddings.position_ids": torch.arange(positions)[None]}

    prefixes = ("vision_model.", "text_model.", "logit", "visual", "text")
    assert all(name.startswith(prefixes) for name in model.state_dict())
    whole = rewrite(folder, tmp_path / "whole", with_buffers, transformers_version="4.30.0")
    assert_vision_is(build(tokenizer, vision_from=str(whole)), model.vision_model)
    model.vision_model.save_pretrained(tmp_path / "new")

    def tower(tensors):
        prefixed = {}
        for name, tensor in tensors.items():
            prefixed[f"vision_model.{name.removeprefix('vision_model.')}"] = tensor
        return with_buffers(prefixed)

    alone = rewrite(
        tmp_path / "new",
        tmp_path / "tower",
        tower,
        transformers_version="4.40.1",
        torch_dtype="float32",
    )
    assert_vision_is(build(tokenizer, vision_from=str(alone)), model.vision_model)


def test_a_masked_language_model_of_transformers_4_loads_with_its_buffers(
    roberta, tokenizer, tmp_path
):
    def change(tensors):
        assert "roberta.embeddings.word_embeddings.weight" in tensors
        return tensors | {"roberta.embeddings.position_ids": torch.arange(60)[None]}

    old = rewrite(
        roberta[0],
        tmp_path / "old",
        change,
        transformers_version="4.6.0",
        position_embedding_type="absolute",
    )
    assert_text_is(build(tokenizer, text_from=str(old)), roberta[1].roberta)


def test_half_precision_folders_make_full_precision_towers(clip, tokenizer, tmp_path):
    half = rewrite(
        clip[0],
        tmp_path / "half",
        lambda tensors: {k: t.half() for k, t in tensors.items()},
        dtype="float16",
    )
    model = build(tokenizer, vision_from=str(half))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = clip[1].vision_model.encoder.layers[1].mlp.fc1.weight
    assert torch.equal(model.vision.encoder.layers[1].mlp.fc1.weight, weight.half().float())


@pytest.mark.parametrize(
    ("config", "kind", "base"),
    [
        (XLMRobertaConfig, XLMRobertaForMaskedLM, "roberta"),
        (BertConfig, BertForMaskedLM, "bert"),
        (ModernBertConfig, ModernBertForMaskedLM, "model"),
    ],
)
def test_other_text_encoders_load_and_compute_the_same(
    config, kind, base, words, tokenizer, tmp_path
):
    tokens = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    windows = {"local_attention": 4, "global_attn_every_n_layers": 2} if base == "model" else {}
    folder, model = saved(
        kind(config(vocab_size=words, **SMALL_TEXT, **tokens, **windows)), tmp_path
    )
    ours = build(tokenizer, text_from=str(folder))
    assert type(ours.text) is type(getattr(model, base))
    assert_text_is(ours, getattr(model, base))


def test_towers_of_other_kinds_start_from_random_weights_by_their_model_type(tokenizer, words):
    vision = SMALL_VISION | {"model_type": "siglip_vision_model"}
    text = SMALL_TEXT | {"model_type": "modernbert"}
    model = build(tokenizer, vision=vision, text=text, fusion={"max_frames": 2})
    assert (model.vision.config.model_type, model.text.config.model_type) == (
        "siglip_vision_model",
        "modernbert",
    )
    assert model.text.config.vocab_size == words
    assert model.encode_image(torch.randn(1, 2, 3, 32, 32)).shape == (1, 2 + 2 * 16, 32)


def test_siglip_gains_a_class_token_and_otherwise_equals_its_own_layers(siglip, tokenizer):
    model = build(tokenizer, vision_from=str(siglip[0]))
    with torch.no_grad():
        pixels = torch.randn(2, 3, 48, 32)
        embedded = model.vision.embeddings(pixels, interpolate_pos_encoding=True)
        first = (model.class_token + model.class_position).expand(2, 1, -1)
        hidden = model.vision.encoder(
            inputs_embeds=torch.cat([first, embedded], dim=1)
        ).last_hidden_state
        expected = model.image_projection(model.vision.post_layernorm(hidden))
        torch.testing.assert_close(model.encode_image(pixels), expected, atol=1e-6, rtol=0)
    model.encode_image(pixels, need="first").sum().backward()
    assert model.class_token.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_positions_are_interpolated_and_later_blocks_dropped(family, request, tokenizer):
    folder, theirs = request.getfixturevalue(family)
    model = build(
        tokenizer, vision_from=str(folder), vision={"image_size": 48, "num_hidden_layers": 2}
    )
    tower = theirs.vision_model
    resized = tower.embeddings.interpolate_pos_encoding(
        torch.empty(1, 36 + (family == "clip"), 32), 48, 48
    )[0]
    assert torch.equal(model.vision.embeddings.position_embedding.weight, resized)
    assert len(model.vision.encoder.layers) == 2
    for ours, other in zip(model.vision.encoder.layers, tower.encoder.layers, strict=False):
        assert torch.equal(ours.mlp.fc1.weight, other.mlp.fc1.weight)


def published_tower(width: int, layers: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    return sizes | {"num_attention_heads": width // 64}


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        (published_tower(768, 12) | {"patch_size": 32}, published_tower(768, 12)),
        (published_tower(1024, 24) | {"patch_size": 14}, published_tower(1024, 24)),
    ],
    ids=["B/32 with base", "L/14 with large"],
)
def test_published_sizes_fit_together(vision, text):
    text = text | {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    config = GLSCLConfig(
        vision_config=CLIPVisionConfig(image_size=224, **vision), text_config=RobertaConfig(**text)
    )
    with torch.device("meta"):
        model = GLSCLModel(config)
        tokens = model.encode_image(torch.empty(1, 3, 224, 224))
        states = model.encode_text(
            torch.ones(1, 16, dtype=torch.long), torch.ones(1, 16, dtype=torch.long)
        )
    assert tokens.shape == (1, 1 + (224 // vision["patch_size"]) ** 2, 768)
    assert states.shape == (1, 16, 768)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vision": {"model_type": "vit"}},
            "'vit' is not a supported image tower: choose clip_vision_model or siglip_vision_model",
        ),
        (
            {"vision": {"model_type": "siglip2_vision_model"}},
            "is not a supported image tower",
        ),
        ({"text": {"model_type": "gpt2"}}, "'gpt2' is not a bidirectional text encoder"),
        ({"text": {"model_type": "bart"}}, "is an encoder-decoder"),
        ({"text": {"model_type": "nonsense"}}, "transformers has no model type 'nonsense'"),
        (
            {"vision": {"patch_sise": 8}},
            "unknown key model.vision.patch_sise; did you mean model.vision.patch_size",
        ),
        (
            {"vision": SMALL_VISION | {"image_size": 30}},
            "image_size 30 is not a multiple of patch_size 8",
        ),
        ({"text": {"max_position_embeddings": 33}}, "RoBERTa needs 2 more"),
        (
            {"fusion": {"tie_masked_language_head": True, "hidden_size": 64}},
            "as wide as the fusion encoder",
        ),
        ({"fusion": {"contrastive_head": "cubic"}}, "contrastive_head"),
    ],
)
def test_impossible_models_are_refused(fields, message, tokenizer):
    with pytest.raises(UsageError, match=message):
        build(tokenizer, **fields)


def test_unsuitable_folders_are_refused(clip, roberta, words, tokenizer, tmp_path):
    with pytest.raises(UsageError, match="has 10 tokens"):
        build(tokenizer, text_from=str(roberta[0]), text={"vocab_size": 10})
    with pytest.raises(UsageError, match="has 3 blocks, model.vision asks for 4"):
        build(tokenizer, vision_from=str(clip[0]), vision={"num_hidden_layers": 4})
    with pytest.raises(UsageError, match="not a supported image tower"):
        build(tokenizer, vision_from=str(roberta[0]))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((clip[0] / "config.json").read_text())
    torch.save(clip[1].state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        build(tokenizer, vision_from=str(pickled))
    lacking = rewrite(
        clip[0],
        tmp_path / "lacking",
        lambda t: {k: v for k, v in t.items() if "layers.1." not in k},
    )
    with pytest.raises(
        UsageError, match="lacks 16 weights of a CLIPVisionModel, the first is encoder.layers.1"
    ):
        build(tokenizer, vision_from=str(lacking))


def test_weights_of_other_image_and_video_sizes_are_interpolated():
    model, source = tiny_model(seed=1, max_frames=5), tiny_model(seed=2, max_frames=3)
    ramp = torch.arange(3.0).double()[:, None].expand(3, 32)
    state = source.state_dict() | {"temporal_embedding": ramp}
    name = "vision.embeddings.position_embedding.weight"
    # A grid of 4 x 4 patches; this model has 3 x 3.
    state[name] = torch.cat([state[name][:1], torch.ones(16, 32).double()])
    load_weights(model, state)
    assert model.temporal_embedding[:, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    torch.testing.assert_close(model.state_dict()[name][1:], torch.ones(9, 32).double())
    assert torch.equal(model.state_dict()[name][0], state[name][0])
    assert torch.equal(
        model.fusion.text_layers[0].output.dense.weight,
        source.fusion.text_layers[0].output.dense.weight,
    )


def test_a_temporal_table_of_one_side_stays_unchanged_or_is_dropped():
    of_videos, of_images = tiny_model(seed=1), tiny_model(seed=2, max_frames=0)
    table = of_videos.temporal_embedding.clone()
    load_weights(of_videos, of_images.state_dict())
    assert torch.equal(of_videos.temporal_embedding, table)
    load_weights(of_images, of_videos.state_dict())
    assert of_images.temporal_embedding is None
    with pytest.raises(UsageError, match="of another model"):
        load_weights(of_videos, tiny_model(fusion_layers=1).state_dict())


def test_a_saved_configuration_restores_its_towers_by_their_model_type(tmp_path):
    model = tiny_model(
        vision_config=SMALL_VISION | {"model_type": "siglip_vision_model"},
        text_config=SMALL_TEXT | {"model_type": "bert", "vocab_size": 60},
    ).float()
    model.save_pretrained(tmp_path)
    again, loading = GLSCLModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    ids, mask = texts(2)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(pixels, ids, mask).pooled, model(pixels, ids, mask).pooled)
    assert (
        AutoModel.from_config(again.config.vision_config).config.model_type == "siglip_vision_model"
    )


def test_a_linear_contrastive_head_is_one_matrix():
    model = tiny_model(contrastive_head="linear")
    tokens = torch.randn(2, 5, 32).double()
    assert {name for name, _ in model.named_parameters() if "contrastive_image" in name} == {
        "contrastive_image_head.weight"
    }
    expected = tokens[:, 0] @ model.contrastive_image_head.weight.T
    torch.testing.assert_close(model.contrastive_image(tokens), expected, atol=1e-12, rtol=0)


def test_a_tied_masked_language_head_reads_the_word_embedding_and_survives_saving(tmp_path):
    model = tiny_model(tie_masked_language_head=True).float()
    words = model.text.get_input_embeddings().weight
    states = torch.randn(3, 32)
    expected = (
        model.masked_language_head.transform(states) @ words.T
        + model.masked_language_head.decoder.bias
    )
    torch.testing.assert_close(model.masked_language_head(states), expected, atol=1e-6, rtol=0)
    assert sum(parameter is words for parameter in model.parameters()) == 1
    model.save_pretrained(tmp_path)
    assert "masked_language_head.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    again = GLSCLModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.masked_language_head(states), model.masked_language_head(states))
    with torch.no_grad():
        again.text.get_input_embeddings().weight.zero_()
    assert torch.equal(
        again.masked_language_head(states)[0], again.masked_language_head.decoder.bias
    )

"""A run that starts from towers of CLIP and RoBERTa folders, as a hub serves them."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, RobertaConfig, RobertaForMaskedLM

from data_pipeline.errors import UsageError
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import ModelConfig

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    vision = TOWER | {"num_hidden_layers": 3, "patch_size": 8, "image_size": 32}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TOWER | {"num_hidden_layers": 1}))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def roberta(tmp_path_factory, tokenizer):
    words = Tokenizer.load(tokenizer).vocab_size
    config = RobertaConfig(**TOWER, num_hidden_layers=2, vocab_size=words, max_position_embeddings=60)
    model = RobertaForMaskedLM(config)
    folder = tmp_path_factory.mktemp("roberta")
    model.save_pretrained(folder)
    return folder, model


def build(tokenizer, **fields):
    fusion = {"hidden_size": 32, "fusion_layers": 1, "fusion_heads": 2, "fusion_intermediate_size": 64}
    return build_model(ModelConfig(fusion=fusion, **fields), Tokenizer.load(tokenizer), 32)


def test_towers_take_the_weights_of_the_folders(clip, roberta, tokenizer):
    model = build(tokenizer, vision_from=str(clip[0]), text_from=str(roberta[0]))
    pixels = torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[0, 9, 8, 2]])
    with torch.no_grad():
        ours = model.eval().vision(pixels).last_hidden_state
        theirs = clip[1].eval().vision_model(pixels).last_hidden_state
        our_text = model.text(ids).last_hidden_state
        their_text = roberta[1].eval().roberta(ids).last_hidden_state
    assert torch.equal(ours, theirs) and torch.equal(our_text, their_text)


def test_positions_are_interpolated_and_late_blocks_left_out(clip, tokenizer):
    text = TOWER | {"num_hidden_layers": 1, "max_position_embeddings": 40}
    model = build(tokenizer, vision_from=str(clip[0]), vision={"image_size": 48, "num_hidden_layers": 2}, text=text)
    theirs = clip[1].vision_model
    resized = theirs.embeddings.interpolate_pos_encoding(torch.empty(1, 37, 32), 48, 48)[0]
    assert torch.equal(model.vision.embeddings.position_embedding.weight, resized)
    assert len(model.vision.encoder.layers) == 2
    for ours, other in zip(model.vision.encoder.layers, theirs.encoder.layers, strict=False):
        assert torch.equal(ours.mlp.fc1.weight, other.mlp.fc1.weight)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(roberta, tokenizer):
    with pytest.raises(UsageError, match="knows 10 tokens"):
        build(tokenizer, text_from=str(roberta[0]), text={"vocab_size": 10})

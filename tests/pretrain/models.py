"""Tiny random models and inputs, shared by the tests of `pretrain.model`."""

import torch
from transformers import CLIPVisionConfig, RobertaConfig

from pretrain.model import GLSCLConfig, GLSCLModel

WIDTH = 32
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
VISION = CLIPVisionConfig(patch_size=8, image_size=24, **TOWER)
TEXT = RobertaConfig(vocab_size=60, max_position_embeddings=20, type_vocab_size=1, **TOWER)
FUSION = {
    "hidden_size": WIDTH,
    "fusion_layers": 2,
    "fusion_heads": 2,
    "fusion_intermediate_size": 48,
}


def tiny_config(**fields) -> GLSCLConfig:
    """Sizes of a model that runs in milliseconds."""
    sizes = {"vision_config": VISION.to_dict(), "text_config": TEXT.to_dict(), **FUSION}
    sizes |= {"projection_dim": 16, "max_text_length": 12, "max_frames": 8}
    return GLSCLConfig(**sizes | fields)


def tiny_model(seed: int = 0, **fields) -> GLSCLModel:
    """Make a float64 model in eval mode, whose norms and biases are random too."""
    torch.manual_seed(seed)
    model = GLSCLModel(tiny_config(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def texts(batch: int, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Make ids and mask of random padded texts of different lengths."""
    lengths = torch.randint(3, length + 1, (batch,))
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return torch.where(mask == 1, torch.randint(4, 60, (batch, length)), 1), mask

"""Images of one color with questions, and pairs of them with statements.

They are the smallest data that fine-tuning can learn.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionConfig, RobertaConfig

from data_pipeline.shards.write import Record, write_shards
from data_pipeline.text import Tokenizer
from pretrain.model import GLSCLConfig, GLSCLModel, GLSCLProcessor

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 230),
    "white": (240, 240, 240),
}
WORDS = [
    "a red picture",
    "a green picture",
    "a blue picture",
    "a white picture",
    "which colour is it",
    "is it red",
]
STATEMENT = "both are the same colour"
SIZE, WIDTH = 32, 32


def write_colours(root: Path, split: str, count: int) -> None:
    """Write images to `root`/split and pairs to `root`/pairs/split, each image in its own shade."""
    write_shards(root / split, pictures(split, count), source={"name": f"colours-{split}"})
    write_shards(
        root / "pairs" / split, _pairs(split, count), source={"name": f"colour-pairs-{split}"}
    )


def write_tokenizer(root: Path) -> Path:
    Tokenizer.train([*WORDS, STATEMENT] * 20, 300).save(root)
    return root


def write_model(root: Path, tokenizer: Path, dropout: float = 0.1) -> Path:
    """Write a tiny random model that takes images of 32 pixels and videos of 2 frames."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = Tokenizer.load(tokenizer)
    config = GLSCLConfig(
        vision_config=CLIPVisionConfig(patch_size=16, image_size=SIZE, **tower),
        text_config=RobertaConfig(
            vocab_size=text.vocab_size,
            max_position_embeddings=40,
            type_vocab_size=1,
            initializer_range=0.1,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **tower,
        ),
        hidden_size=WIDTH,
        fusion_layers=2,
        fusion_heads=2,
        fusion_intermediate_size=64,
        projection_dim=16,
        max_text_length=16,
        initializer_range=0.1,
        fusion_dropout=dropout,
    )
    model = GLSCLModel(config)
    model.save_pretrained(root)
    GLSCLProcessor.build(config, AutoTokenizer.from_pretrained(tokenizer)).save_pretrained(root)
    return root


def _picture(colour: str, shade: int) -> bytes:
    content = io.BytesIO()
    rgb = tuple(max(0, min(255, channel - shade)) for channel in COLOURS[colour])
    Image.new("RGB", (SIZE, SIZE), rgb).save(content, "PNG")
    return content.getvalue()


def pictures(split: str, count: int) -> Iterator[Record]:
    """Yield records of images, each with a caption and two questions."""
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        questions = [
            {"id": f"{number}-a", "question": "which colour is it", "answers": [colour] * 10},
            {
                "id": f"{number}-b",
                "question": "is it red",
                "answers": ["yes" if colour == "red" else "no"] * 10,
            },
        ]
        about = {
            "captions": [f"a {colour} picture"],
            "image_id": f"{split}-{number}",
            "questions": questions,
        }
        yield (
            f"{number:04d}",
            {"png": _picture(colour, number // 4), "json": json.dumps(about).encode()},
        )


def _pairs(split: str, count: int) -> Iterator[Record]:
    colours = list(COLOURS)
    for number in range(count):
        first = colours[number % 4]
        second = first if number // 4 % 2 else colours[(number + 1 + number // 8 % 3) % 4]
        question = {
            "id": f"{split}-{number}-0",
            "question": STATEMENT,
            "answers": [str(first == second)],
        }
        about = {"questions": [question | {"type": "statement", "group": f"{split}-{number}"}]}
        pictures = {"0.png": _picture(first, number // 4), "1.png": _picture(second, number // 3)}
        yield f"{number:04d}", pictures | {"json": json.dumps(about).encode()}

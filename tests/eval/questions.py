"""Tiny data sets of questions about images and statements about pairs, and a model for them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, RobertaConfig

from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer
from pretrain.model import GLSCLConfig, GLSCLModel

from .conftest import save_model


def picture(number: int) -> bytes:
    """Noise of its pairs for each number."""
    content = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ).save(content, "PNG")
    return content.getvalue()


def question(
    number: int, text: str, answers: Sequence[str], type: str = "what", answer_type: str = "other"
) -> Any:
    return {
        "id": number,
        "question": text,
        "answers": [*answers],
        "type": type,
        "answer_type": answer_type,
    }


def write_questions(
    root: Path, samples: Sequence[Sequence[Any]], broken: Sequence[int] = ()
) -> Path:
    """Write one sample per list of questions; the images with the numbers `broken` are damaged."""
    records = []
    for i, questions in enumerate(samples):
        image = b"broken" if i in broken else picture(i)
        annotations = json.dumps({"questions": questions}).encode()
        records.append((f"{i:03d}", {"png": image, "json": annotations}))
    write_shards(root, records, source={"name": root.name}, samples_per_shard=20)
    return root


def write_statements(
    root: Path, samples: Sequence[Sequence[tuple[str, str]]], broken: Sequence[int] = ()
) -> Path:
    """One pair a list of (identifier, label)."""
    records = []
    for i, pairs in enumerate(samples):
        statements = []
        for name, label in pairs:
            statement = {"id": name, "question": f"the left picture shows {name}"}
            statements.append(statement | {"answers": [label], "type": "statement"})
        second = b"broken" if i in broken else picture(1000 + i)
        annotations = json.dumps({"questions": statements}).encode()
        records.append((f"{i:03d}", {"0.png": picture(i), "1.png": second, "json": annotations}))
    write_shards(root, records, source={"name": root.name})
    return root


def answering_model(out: Path, labels: Sequence[str], images: int = 1, *texts: str) -> Path:
    """A random model that chooses between labels, with a tokenizer for some texts."""
    folder = out.with_name(f"{out.name}-tokenizer")
    Tokenizer.train([*texts, "what is it the left picture shows dev"], 320).save(folder)
    torch.manual_seed(1)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    config = GLSCLConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=1, patch_size=16, image_size=32, **tower),
        text_config=RobertaConfig(
            vocab_size=Tokenizer.load(folder).vocab_size,
            num_hidden_layers=1,
            max_position_embeddings=64,
            type_vocab_size=1,
            **tower,
        ),
        hidden_size=32,
        fusion_layers=2,
        fusion_heads=2,
        fusion_intermediate_size=64,
        projection_dim=16,
        max_text_length=40,
        initializer_range=0.2,
        classifier_labels=list(labels),
        classifier_images=images,
    )
    return save_model(GLSCLModel(config), folder, out)

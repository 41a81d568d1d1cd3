"""Miniature data sets of questions about coloured pictures, and of statements about pairs of them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.write import write_shards


def picture(number: int) -> bytes:
    """Noise of its own for each number."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def question(number: int, text: str, answers: Sequence[str], type: str = "what", answer_type: str = "other") -> Any:
    return {"id": number, "question": text, "answers": [*answers], "type": type, "answer_type": answer_type}


def write_questions(root: Path, samples: Sequence[Sequence[Any]], broken: Sequence[int] = ()) -> Path:
    """One sample a list of questions; the pictures with these numbers cannot be decoded."""
    records = [
        (f"{i:03d}", {"png": b"broken" if i in broken else picture(i), "json": json.dumps({"questions": own}).encode()})
        for i, own in enumerate(samples)
    ]
    write_shards(root, records, source={"name": root.name}, samples_per_shard=20)
    return root


def write_statements(root: Path, samples: Sequence[Sequence[tuple[str, str]]], broken: Sequence[int] = ()) -> Path:
    """One pair a list of (identifier, label)."""
    records = []
    for i, own in enumerate(samples):
        statements = [
            {"id": name, "question": f"the left picture shows {name}", "answers": [label], "type": "statement"}
            for name, label in own
        ]
        second = b"broken" if i in broken else picture(1000 + i)
        annotations = json.dumps({"questions": statements}).encode()
        records.append((f"{i:03d}", {"0.png": picture(i), "1.png": second, "json": annotations}))
    write_shards(root, records, source={"name": root.name})
    return root

"""The model card of an export: what it is, how to use it, and what it was trained on.

In: the model, and what its checkpoint and run folder record. Out: the text of `README.md`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.model import GLSCLModel

_CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: image-feature-extraction
tags:
- vision-language
- glscl
---

# GLSCL encoders

The image and the text encoder of a vision-language model, pre-trained with global and local
semantic completion learning (GLSCL). Both are stock `transformers` classes: nothing else has to be
installed.

| folder | class | input | width |
|---|---|---|---|
| `vision/` | `CLIPVisionModel` | {size} x {size} pixels, resized without crop | {vision_width} |
| `text/` | `{text_class}` | up to {length} tokens | {text_width} |

## Use

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

vision = AutoModel.from_pretrained("vision").eval()
processor = AutoImageProcessor.from_pretrained("vision")
text = AutoModel.from_pretrained("text").eval()
tokenizer = AutoTokenizer.from_pretrained("text")

with torch.inference_mode():
    image = processor(Image.open("image.jpg"), return_tensors="pt")
    states = vision(**image).last_hidden_state
    tower = getattr(vision, "vision_model", vision)  # transformers 4 nests the tower, 5 does not
    # (1, 1 + patches, {vision_width}), class token first
    image_tokens = tower.post_layernorm(states)

    words = tokenizer("a red square", return_tensors="pt", truncation=True)
    text_tokens = text(**words).last_hidden_state  # (1, tokens, {text_width}), <s> first
```

- **Post layer norm on all tokens.** GLSCL applies the last layer norm to every image token; the
  stock class applies it to the pooled one only. `pooler_output` is what GLSCL uses; for patch
  tokens apply `post_layernorm` to `last_hidden_state` as above.
{pooler}- The contrastive heads and the fusion encoder are not part of these folders.

## Training

{training}
"""

_POOLER = """- **The text tower's own pooler is untrained.** GLSCL does not use it: read
  `last_hidden_state[:, 0]`, not `pooler_output`. It is included so that the folder loads without a
  warning.
"""


def model_card(model: GLSCLModel, folder: Path) -> str:
    """Write the card for the model of ``folder``, with the records of its checkpoint and run."""
    config = model.config
    vision: Any = config.vision_config
    text: Any = config.text_config
    return _CARD.format(
        size=config.image_size,
        length=config.max_text_length,
        vision_width=vision.hidden_size,
        text_width=text.hidden_size,
        text_class=type(model.text).__name__,
        pooler=_POOLER if hasattr(model.text, "pooler") else "",
        training=_training(folder),
    )


def _training(folder: Path) -> str:
    checkpoint = folder.parent
    # RUN/checkpoints/step-.../model is the layout of a run.
    run = checkpoint.parent.parent
    trainer, environment = _json(checkpoint / "trainer.json"), _json(run / "environment.json")
    if not trainer:
        return "Unknown: the model was exported from a folder that is not part of a run."
    lines = [f"- {trainer['step']:,} steps, {trainer['samples']:,} samples"]
    for data in environment.get("data", []):
        lines.append(f"- data: `{data['name']}`, manifest sha256 `{data['digest']}`")
    if "code" in environment:
        lines.append(f"- code: `{environment['code']}`, seed {environment.get('seed')}")
    step, metrics = _validation(run / "metrics.jsonl", trainer["step"])
    if metrics:
        lines += ["", f"On the validation split at step {step:,}:", ""]
        lines += ["| metric | value |", "|---|---|"]
    for name, value in metrics.items():
        lines.append(f"| {name.removeprefix('validation/')} | {value:.2f} % |")
    return "\n".join(lines)


def _validation(file: Path, last: int) -> tuple[int, dict[str, float]]:
    """Return the step and the metrics of the last validation up to the exported step."""
    step, metrics = 0, {}
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        row = json.loads(line)
        values = {name: value for name, value in row.items() if name.startswith("validation/")}
        # A resumed run may have trained past the exported step.
        if values and row["step"] <= last:
            step, metrics = row["step"], values
    return step, metrics


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}

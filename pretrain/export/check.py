"""Check an export: a process that cannot import this project must compute the same numbers.

In: a model and the folder of its export. Out: the largest difference of every output.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.augment import write_evaluation_view
from data_pipeline.errors import NumericsError
from data_pipeline.text import Tokenizer
from pretrain.model import GLSCLModel

TOLERANCE = 1e-5
_TEXTS = ["an image", "two small red squares left of a large, striped blue circle"]

# Runs with -I in another folder, so that the project is not on the path. The hook also covers an
# installed copy of the project.
_READER = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("data_pipeline", "pretrain", "eval", "launch"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
try:
    import pretrain
except ModuleNotFoundError:
    pass
else:
    sys.exit("this process can import the project")

import numpy, torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder, given, texts = sys.argv[1], load_file(sys.argv[2]), json.loads(sys.argv[3])
loaded, problems = {}, []
for name in ("vision", "text"):
    loaded[name], info = AutoModel.from_pretrained(f"{folder}/{name}", output_loading_info=True)
    problems += [f"{name} {kind}: {key}" for kind, keys in info.items() for key in keys]
processor = AutoImageProcessor.from_pretrained(f"{folder}/vision")
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/text")
image = Image.fromarray(given["image"].numpy())
with torch.inference_mode():
    vision = loaded["vision"].eval()(pixel_values=given["pixels"])
    text = loaded["text"].eval()(input_ids=given["ids"], attention_mask=given["mask"])
    outputs = {
        "vision/last_hidden_state": vision.last_hidden_state,
        "vision/pooler_output": vision.pooler_output,
        "vision/tokens": loaded["vision"].post_layernorm(vision.last_hidden_state),
        "text/last_hidden_state": text.last_hidden_state,
        "vision/preprocessed": processor(image, return_tensors="pt")["pixel_values"],
    }
    words = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    outputs["text/ids"] = words["input_ids"]
    if "text/pooler_output" in given:
        outputs["text/pooler_output"] = text.pooler_output
differences = {}
for name, value in outputs.items():
    if value.shape == given[name].shape:
        differences[name] = float((value.double() - given[name].double()).abs().max())
    else:
        differences[name] = "shape"
classes = {name: type(model).__name__ for name, model in loaded.items()}
print(json.dumps({"differences": differences, "classes": classes, "problems": problems}))
"""


def check_export(model: GLSCLModel, folder: Path) -> dict[str, float]:
    """Return the largest difference of every output between ``folder`` and ``model``.

    Another process loads the folder. Pixels, token ids and mask are random; a random image and two
    texts go through the exported preprocessing.

    Raises
    ------
    NumericsError
        If a difference exceeds 1e-5, or weights of the folder are missing or superfluous.
    """
    expected = _expected(model, folder)
    with tempfile.TemporaryDirectory() as elsewhere:
        save_file(expected, f"{elsewhere}/expected.safetensors")
        arguments = [str(folder.resolve()), "expected.safetensors", json.dumps(_TEXTS)]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _READER, *arguments],
            cwd=elsewhere,
            # Offline, because the folder alone must be enough.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise NumericsError(
            f"the export cannot be loaded without this project: {done.stderr.strip()[-500:]}"
        )
    # The last line, because libraries may print something before it.
    report = json.loads(done.stdout.splitlines()[-1])
    wrong = {}
    for name, difference in report["differences"].items():
        # Written so that NaN counts as wrong.
        if difference == "shape" or not difference <= TOLERANCE:
            wrong[name] = difference
    if wrong or report["problems"]:
        raise NumericsError(f"the export differs from the model: {wrong or report['problems'][:5]}")
    classes = {"vision": type(model.vision).__name__, "text": type(model.text).__name__}
    if report["classes"] != classes:
        raise NumericsError(f"the export loads as {report['classes']}")
    return report["differences"]


@torch.inference_mode()
def _expected(model: GLSCLModel, folder: Path) -> dict[str, torch.Tensor]:
    config, random = model.config, np.random.default_rng(0)
    text_config: Any = config.text_config
    length = min(config.max_text_length, 16)
    side = config.image_size
    # Not square, so that a crop would show.
    image = random.integers(0, 256, (side + 40, side + 7, 3), dtype=np.uint8)
    pixels = torch.from_numpy(random.standard_normal((2, 3, side, side), dtype=np.float32))
    ids = torch.from_numpy(random.integers(4, text_config.vocab_size, (3, length)))
    mask = (torch.arange(length) < torch.tensor([[length], [length - 1], [2]])).long()
    ids[mask == 0] = text_config.pad_token_id
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    view = np.empty((1, side, side, 3), dtype=np.uint8)
    write_evaluation_view(png.getvalue(), view[0])
    tokenizer = Tokenizer.load(folder / "text")
    encoded = [torch.tensor(e.ids) for e in tokenizer.encode(_TEXTS, config.max_text_length)]
    vision = model.vision(pixel_values=pixels)
    text = model.text(input_ids=ids, attention_mask=mask)
    pooled = {} if text.get("pooler_output") is None else {"text/pooler_output": text.pooler_output}
    return pooled | {
        "image": torch.from_numpy(image),
        "pixels": pixels,
        "ids": ids,
        "mask": mask,
        "vision/last_hidden_state": vision.last_hidden_state,
        "vision/pooler_output": vision.pooler_output,
        # The tokens that GLSCL reads; the stock class normalizes its pooled token only.
        "vision/tokens": _tokens(model, pixels),
        "text/last_hidden_state": text.last_hidden_state,
        "vision/preprocessed": model.normalize(torch.from_numpy(view)).contiguous(),
        "text/ids": torch.nn.utils.rnn.pad_sequence(
            encoded, batch_first=True, padding_value=tokenizer.pad_id
        ),
    }


def _tokens(model: GLSCLModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tokens that the model projects, captured at the input of the projection."""
    taken: list[torch.Tensor] = []
    hook = model.image_projection.register_forward_pre_hook(
        lambda module, inputs: taken.append(inputs[0])
    )
    try:
        model.encode_image(pixels)
    finally:
        hook.remove()
    return taken[0]

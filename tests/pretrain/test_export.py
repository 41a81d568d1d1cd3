"""Exported encoders load as stock classes without this project and compute the same numbers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    CLIPVisionConfig,
    ModernBertConfig,
    RobertaConfig,
    SiglipVisionConfig,
    XLMRobertaConfig,
)

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.text import Tokenizer
from pretrain.export import export
from pretrain.export.check import check_export
from pretrain.model import GLSCLConfig, GLSCLModel, GLSCLProcessor

WIDTH = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of a random model, with the files that an export reads."""
    folder = tmp_path_factory.mktemp("run")
    Tokenizer.train(["a red square", "two blue circles"], 300).save(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = GLSCLConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=2, patch_size=16, image_size=64, **tower),
        text_config=RobertaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            max_position_embeddings=40,
            type_vocab_size=1,
            **tower,
        ),
        hidden_size=WIDTH,
        fusion_layers=1,
        fusion_heads=2,
        fusion_intermediate_size=64,
        projection_dim=16,
        max_text_length=30,
        image_mean=(0.4, 0.5, 0.6),
    )
    checkpoint = folder / "checkpoints" / "step-00000012"
    model = GLSCLModel(config)
    with torch.no_grad():  # so that a missing post layer norm would show
        model.vision.post_layernorm.weight.uniform_(0.5, 2.0)
    model.save_pretrained(checkpoint / "model")
    GLSCLProcessor.build(config, tokenizer).save_pretrained(checkpoint / "model")
    (checkpoint / "trainer.json").write_text(json.dumps({"step": 12, "samples": 768, "data": {}}))
    data = [{"path": "data/train", "name": "scenes-train", "digest": "0af3"}]
    (folder / "environment.json").write_text(json.dumps({"data": data, "code": "abc", "seed": 0}))
    rows = [{"step": s, "loss": 1.0, "validation/text_to_image/R@1": 2.5 * s} for s in (5, 10, 15)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model_folder(run: Path) -> Path:
    return run / "checkpoints" / "step-00000012" / "model"


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model_folder, tmp_path_factory.mktemp("export") / "out", check=True)


_DOWNSTREAM = """
import sys
# Any import of these fails now.
sys.modules.update(dict.fromkeys(("data_pipeline", "pretrain", "eval", "launch")))
try:
    import pretrain
except ImportError:
    print("the project cannot be imported")
from transformers import AutoModel
from safetensors.torch import load_file, save_file

given = load_file("given.safetensors")
vision, text = AutoModel.from_pretrained("vision").eval(), AutoModel.from_pretrained("text").eval()
seen = vision(pixel_values=given["pixels"])
read = text(input_ids=given["ids"], attention_mask=given["mask"])
save_file(
    {
        "vision": seen.last_hidden_state.detach(),
        "vision_pooled": seen.pooler_output.detach(),
        "tokens": vision.post_layernorm(seen.last_hidden_state).detach(),
        "text": read.last_hidden_state.detach(),
        "text_pooled": read.pooler_output.detach(),
    },
    "computed.safetensors",
)
"""


@torch.inference_mode()
def test_towers_compute_the_same_in_a_process_without_this_project(
    model_folder: Path, exported: Path
) -> None:
    model = GLSCLModel.from_pretrained(model_folder).eval()
    given = {
        "pixels": torch.randn(2, 3, 64, 64),
        "ids": torch.randint(4, 250, (2, 9)),
        "mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
    }
    save_file(given, exported / "given.safetensors")
    done = subprocess.run(
        [sys.executable, "-I", "-c", _DOWNSTREAM], cwd=exported, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the project cannot be imported" in done.stdout
    assert "MISSING" not in done.stderr and "UNEXPECTED" not in done.stderr
    vision = model.vision(pixel_values=given["pixels"])
    text = model.text(input_ids=given["ids"], attention_mask=given["mask"])
    expected = {
        "vision": vision.last_hidden_state,
        "vision_pooled": vision.pooler_output,
        "text": text.last_hidden_state,
        "text_pooled": text.pooler_output,
    }
    computed = load_file(exported / "computed.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(computed[name], tensor, atol=1e-5, rtol=0)
    # The recipe of the card gives the tokens that GLSCL projects and fuses.
    projected = model.image_projection(computed["tokens"])
    torch.testing.assert_close(projected, model.encode_image(given["pixels"]), atol=1e-5, rtol=0)
    projected = model.text_projection(computed["text"])
    torch.testing.assert_close(
        projected, model.encode_text(given["ids"], given["mask"]), atol=1e-5, rtol=0
    )


def exportable(model_folder: Path, out: Path, **towers) -> tuple[Path, GLSCLModel]:
    """Save a copy of the model with other towers."""
    old = GLSCLModel.from_pretrained(model_folder).config
    config = GLSCLConfig(**old.to_dict() | towers)
    model = GLSCLModel(config)
    shutil.copytree(model_folder, out)
    model.save_pretrained(out)
    return out, model


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BertConfig, ModernBertConfig, XLMRobertaConfig])
def test_other_text_towers_are_exported_as_their_own_stock_class(
    kind, model_folder: Path, tmp_path: Path
) -> None:
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    words = json.loads((model_folder / "config.json").read_text())["text_config"]["vocab_size"]
    tokens = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    text = kind(vocab_size=words, max_position_embeddings=40, **tower, **tokens)
    folder, model = exportable(model_folder, tmp_path / "model", text_config=text.to_dict())
    out = export(folder, tmp_path / "out", check=True)
    config = json.loads((out / "text" / "config.json").read_text())
    assert config["architectures"] == [type(model.text).__name__]
    card = (out / "README.md").read_text()
    assert f"`{type(model.text).__name__}`" in card
    assert ("own pooler is untrained" in card) == hasattr(model.text, "pooler")


def test_an_image_tower_that_no_stock_class_computes_is_refused(
    model_folder: Path, tmp_path: Path
) -> None:
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    vision = SiglipVisionConfig(patch_size=16, image_size=64, **tower).to_dict()
    folder, _ = exportable(model_folder, tmp_path / "model", vision_config=vision)
    with pytest.raises(UsageError, match="SiglipVisionModel with a class token"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_have_the_prefix_that_transformers_4_reads(exported: Path) -> None:
    names = list(load_file(exported / "vision" / "model.safetensors"))
    assert all(name.startswith("vision_model.") for name in names)
    for tower, architecture in (("vision", "CLIPVisionModel"), ("text", "RobertaModel")):
        config = json.loads((exported / tower / "config.json").read_text())
        assert config["architectures"] == [architecture]
    # Neither this project's attention function nor its processor is named.
    assert "glscl" not in (exported / "vision" / "config.json").read_text()
    assert "GLSCL" not in (exported / "text" / "tokenizer_config.json").read_text()


def test_preprocessing_resizes_images_without_a_crop_and_cuts_long_texts(exported: Path) -> None:
    settings = json.loads((exported / "vision" / "preprocessor_config.json").read_text())
    assert settings["do_center_crop"] is False
    assert settings["size"] == {"height": 64, "width": 64}
    assert settings["image_mean"] == [0.4, 0.5, 0.6]
    tokenizer = AutoTokenizer.from_pretrained(exported / "text")
    assert len(tokenizer("square " * 100, truncation=True)["input_ids"]) == 30


def test_the_card_holds_the_recipe_the_data_and_the_metrics(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for text in (
        "tower.post_layernorm(states)",
        "own pooler is untrained",
        "12 steps, 768 samples",
        "`scenes-train`, manifest sha256 `0af3`",
        "at step 10",
        "| text_to_image/R@1 | 25.00 % |",
    ):
        assert text in card
    assert card.startswith("---\nlibrary_name: transformers\n")


@torch.inference_mode()
@pytest.mark.slow
def test_the_check_finds_a_changed_weight_and_a_missing_one(
    model_folder: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(model_folder).eval()
    out = export(model_folder, tmp_path / "out")
    model.text.encoder.layer[0].output.dense.bias[0] += 0.1
    with pytest.raises(
        NumericsError, match="the export differs from the model: .*text/last_hidden_state"
    ):
        check_export(model, out)
    model.text.encoder.layer[0].output.dense.bias[0] -= 0.1
    stored = load_file(out / "text" / "model.safetensors")
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("pooler")}
    save_file(tensors, out / "text" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="text"):
        check_export(model, out)


def test_an_export_replaces_an_export_and_nothing_else(model_folder: Path, tmp_path: Path) -> None:
    out = export(model_folder, tmp_path / "out")
    (out / "README.md").write_text("old")
    (tmp_path / ".out.tmp" / "vision").mkdir(parents=True)  # left by an export that was killed
    export(model_folder, out)
    assert (out / "README.md").read_text() != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not empty and not an earlier export"):
        export(model_folder, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "precious"
    with pytest.raises(UsageError, match="is a file"):
        export(model_folder, tmp_path / "other" / "thesis.tex")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model at"):
        export(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a model nor a checkpoint"):
        export(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()

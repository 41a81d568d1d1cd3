"""`glscl convert` writes a complete folder or nothing; the folder works like any other model."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from data_pipeline.text import Tokenizer
from launch.cli import main
from pretrain.model import GLSCLModel, GLSCLProcessor
from tests.ranks import Started

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden" / "image_0_weights.safetensors"
VOCABULARY = (
    "text_transformer.embeddings.word_embeddings.weight",
    "mlm_score.decoder.weight",
    "mlm_score.bias",
)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    """The golden weights in the layout of PyTorch-Lightning, cut to the tokenizer's entries."""
    entries = len(AutoTokenizer.from_pretrained(tokenizer))
    weights: dict[str, Tensor] = load_file(GOLDEN)
    for name in VOCABULARY:
        weights[name] = weights[name][:entries].clone()
    path = tmp_path_factory.mktemp("authors") / "authors.ckpt"
    torch.save({"epoch": 1, "state_dict": weights, "callbacks": {Path: 1}}, path)
    return path


@pytest.fixture
def glscl(capsys) -> Callable[..., str]:
    def run(*arguments: object, code: int = 0) -> str:
        """Run the command and return the last line of its output, or of its error."""
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        return (captured.err if code else captured.out).strip().splitlines()[-1]

    return run


def test_convert_writes_a_model_that_loads_and_equals_the_authors(
    tmp_path, checkpoint, tokenizer, glscl
):
    out = tmp_path / "new" / "converted"
    printed = json.loads(glscl("convert", checkpoint, out, "--tokenizer", tokenizer, "--json"))
    model = GLSCLModel.from_pretrained(out / "full")
    assert printed == {
        "out": str(out),
        "full": str(out / "full"),
        "tokenizer": True,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": 64,
    }
    expected = GLSCLModel.from_authors(str(checkpoint)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    processor = GLSCLProcessor.from_pretrained(out / "full")
    assert (
        processor.tokenizer("a red square").input_ids
        == AutoTokenizer.from_pretrained(tokenizer)("a red square").input_ids
    )
    assert processor.image_processor.size == {"height": 64, "width": 64}
    assert [path.name for path in out.parent.iterdir()] == ["converted"]


def test_a_converted_model_and_the_checkpoint_itself_have_the_same_metrics(
    tmp_path, checkpoint, tokenizer, scenes, glscl
):
    glscl("convert", checkpoint, tmp_path / "converted", "--tokenizer", tokenizer)
    beside = tmp_path / "beside"
    Tokenizer.load(tokenizer).save(beside)
    (beside / "authors.ckpt").write_bytes(checkpoint.read_bytes())
    results = []
    for name, model in (("a", tmp_path / "converted" / "full"), ("b", beside / "authors.ckpt")):
        where = ("--model", model, "--data", scenes / "test", "--out", tmp_path / name)
        options = ("--limit", 6, "--rerank-k", 3, "--json")
        results.append(json.loads(glscl("eval", "retrieval", *where, *options)))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["model"]["parameters"] == results[1]["model"]["parameters"]
    assert all(len(result["model"]["hash"]) == len("sha256:") + 64 for result in results)
    # The hash is that of a file, and there are two files.
    assert results[0]["model"]["hash"] != results[1]["model"]["hash"]


def test_evaluation_without_a_tokenizer_explains_how_to_add_one(
    tmp_path, checkpoint, scenes, glscl
):
    glscl("convert", checkpoint, tmp_path / "bare")
    assert not (tmp_path / "bare" / "full" / "tokenizer.json").exists()
    for model in (tmp_path / "bare" / "full", checkpoint):
        where = ("--model", model, "--data", scenes / "test", "--out", tmp_path / "result")
        error = glscl("eval", "retrieval", *where, code=3)
        assert "no tokenizer" in error and "--tokenizer" in error


def test_evaluation_refuses_the_tokenizer_of_another_model(tmp_path, checkpoint, scenes, glscl):
    (tmp_path / "authors.ckpt").write_bytes(checkpoint.read_bytes())
    # Many different words, so that the tokenizer has more entries than the model.
    captions = [f"{number} birds and boats" for number in range(180)]
    captions += [chr(number) * 3 for number in range(160, 700)]
    Tokenizer.train(captions, 900).save(tmp_path)
    where = ("--data", scenes / "test", "--out", tmp_path / "result")
    assert "another model's" in glscl(
        "eval", "retrieval", "--model", tmp_path / "authors.ckpt", *where, code=3
    )


def test_export_of_a_checkpoint_file_advises_to_convert_it(tmp_path, checkpoint, glscl):
    assert f"glscl convert {checkpoint}" in glscl("export", checkpoint, tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_a_converted_model_is_exported(tmp_path, checkpoint, tokenizer, glscl):
    glscl("convert", checkpoint, tmp_path / "converted", "--tokenizer", tokenizer)
    glscl("export", tmp_path / "converted" / "full", tmp_path / "exported")
    assert (tmp_path / "exported" / "text" / "tokenizer.json").is_file()


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path, checkpoint, glscl):
    (tmp_path / "out").mkdir()
    glscl("convert", checkpoint, tmp_path / "out")  # an empty folder is used
    before = sorted(tmp_path.rglob("*"))
    assert "not an empty folder" in glscl("convert", checkpoint, tmp_path / "out", code=2)
    assert "not an empty folder" in glscl(
        "convert", checkpoint, tmp_path / "out" / "full" / "config.json", code=2
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_converted_leaves_nothing_behind(tmp_path, checkpoint, tokenizer, glscl):
    out = tmp_path / "out"
    assert "no such file" in glscl("convert", tmp_path / "nothing.ckpt", out, code=2)
    assert "a folder, not a file" in glscl("convert", tmp_path, out, code=2)
    assert "no such folder" in glscl(
        "convert", checkpoint, out, "--tokenizer", "roberta-base", code=2
    )
    assert "no tokenizer at" in glscl("convert", checkpoint, out, "--tokenizer", tmp_path, code=3)
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:-1000])
    assert "cut.ckpt is not a usable checkpoint" in glscl(
        "convert", tmp_path / "cut.ckpt", out, code=3
    )
    torch.save({"vqa_classifier.0.bias": torch.ones(1)}, tmp_path / "vqa.ckpt")
    assert "fine-tuned for VQA" in glscl("convert", tmp_path / "vqa.ckpt", out, code=3)
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    assert "lacks" in glscl("convert", tmp_path / "x.safetensors", out, code=3)
    error = glscl("convert", GOLDEN, out, "--tokenizer", tokenizer, code=3)
    assert "not the tokenizer that the checkpoint was trained with" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.ckpt",
        "vqa.ckpt",
        "x.safetensors",
    ]


def convert_within(limit: int, checkpoint: Path, out: Path) -> int:
    """Convert in a process whose files may not grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return main(["convert", str(checkpoint), str(out)])


def test_a_full_disk_leaves_nothing_behind(tmp_path, checkpoint):
    limit = checkpoint.stat().st_size // 2
    done = Started(convert_within, limit, checkpoint, tmp_path / "out").wait()
    assert done.exit_code == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("glscl: error: ")
    assert list(tmp_path.iterdir()) == []

"""A gallery of generated scenes and a tiny model that knows it by heart, for tests of eval."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, CLIPVisionConfig, RobertaConfig

from data_pipeline.loader import evaluation_batches
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer
from eval.results.schema import Result
from pretrain.model import GLSCLConfig, GLSCLModel, GLSCLProcessor

PICTURES = 20
WIDTH = 48


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 20 test scenes of 48 pixels."""
    out = tmp_path_factory.mktemp("scenes")
    generate(out, train=40, val=0, test=PICTURES, novel=0, size=48, seed=5, workers=1)
    return out


@pytest.fixture(scope="session")
def gallery(scenes: Path) -> Path:
    """The test split."""
    return scenes / "test"


@pytest.fixture(scope="session")
def tokenizer(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store([Manifest.load(gallery)])
    folder = tmp_path_factory.mktemp("tokenizer")
    captions = [text for i in range(PICTURES) for text in store.read(0, i).captions]
    Tokenizer.train(captions, 420).save(folder)
    return folder


def save_model(model: GLSCLModel, tokenizer: Path, out: Path) -> Path:
    model.save_pretrained(out)
    GLSCLProcessor.build(model.config, AutoTokenizer.from_pretrained(tokenizer)).save_pretrained(
        out
    )
    return out


@pytest.fixture(scope="session")
def knowing_model(gallery: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model trained on the gallery itself until it recognizes its images."""
    torch.manual_seed(0)
    tower = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 2}
    text = Tokenizer.load(tokenizer)
    config = GLSCLConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=1, patch_size=16, image_size=48, **tower),
        text_config=RobertaConfig(
            vocab_size=text.vocab_size,
            num_hidden_layers=1,
            max_position_embeddings=64,
            type_vocab_size=1,
            initializer_range=0.1,
            **tower,
        ),
        hidden_size=WIDTH,
        fusion_layers=2,
        fusion_heads=2,
        fusion_intermediate_size=96,
        fusion_dropout=0.0,
        projection_dim=32,
        max_text_length=40,
        initializer_range=0.1,
    )
    model = GLSCLModel(config).eval()  # no dropout: there is nothing to generalize to
    (batch,) = evaluation_batches(Manifest.load(gallery), size=48, batch_size=PICTURES)
    pixels = model.normalize(batch.pixels)
    encoded = []
    for sample in batch.samples:
        encoded.append([torch.tensor(e.ids) for e in text.encode(sample.captions, 40)])
    optimizer = torch.optim.AdamW(model.parameters())
    image_numbers = torch.arange(PICTURES)
    for step in range(160):
        optimizer.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 20)
        ids = torch.nn.utils.rnn.pad_sequence(
            [several[step % 5] for several in encoded], True, text.pad_id
        )
        mask = (ids != text.pad_id).long()
        images, texts = model.encode_image(pixels), model.encode_text(ids, mask)
        cosines = (
            normalize(model.contrastive_text(texts)) @ normalize(model.contrastive_image(images)).T
        )
        other = torch.cat([image_numbers, (image_numbers + 1 + step % (PICTURES - 1)) % PICTURES])
        fused = model.fuse(texts.repeat(2, 1, 1), mask.repeat(2, 1), images[other])
        loss = cross_entropy(cosines / 0.1, image_numbers) + cross_entropy(
            cosines.T / 0.1, image_numbers
        )
        loss = loss + cross_entropy(
            model.match(fused.pooled), (other == image_numbers.repeat(2)).long()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return save_model(model, tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def jpeg() -> bytes:
    """A red image."""
    content = io.BytesIO()
    Image.new("RGB", (48, 48), (255, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def warnings(result: Result) -> list[str]:
    """Return the flags but those that every small test set and plain model folder has."""
    common = ("overlap: unknown", "few_clusters/", "limit/")
    return [flag for flag in result.flags if not flag.startswith(common)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run a test on one thread: its tensors are small, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

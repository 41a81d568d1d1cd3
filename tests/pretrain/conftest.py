"""A small generated data set, tokenizer and configuration, shared by the tests of pretrain."""

from pathlib import Path

import pytest

from data_pipeline.scenes.generate import generate
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer
from pretrain.config import RunConfig
from pretrain.config_file import parse_config
from tests.pretrain.runs import tiny_settings


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """96 training, 14 validation and 14 test scenes of 48 pixels, as shards."""
    out = tmp_path_factory.mktemp("scenes")
    generate(out, train=96, val=14, test=14, novel=4, size=48, seed=3, workers=1)
    return out


@pytest.fixture(scope="session")
def tokenizer(scenes, tmp_path_factory) -> Path:
    """A tokenizer trained on the captions of the scenes."""
    from data_pipeline.shards.manifest import Manifest

    store = Store([Manifest.load(scenes / "train")])
    folder = tmp_path_factory.mktemp("tokenizer")
    captions: list[str] = []
    for number in range(96):
        captions += store.read(0, number).captions
    Tokenizer.train(captions, 400).save(folder)
    return folder


@pytest.fixture
def settings(scenes, tokenizer, tmp_path) -> dict:
    """Nested configuration values of a run of a tiny model; tests change some of them."""
    return tiny_settings(scenes, tokenizer, tmp_path / "run")


@pytest.fixture
def config(settings) -> RunConfig:
    """The settings as a configuration."""
    return parse_config(RunConfig, settings, "settings")


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """24 training and 6 validation videos of moving objects, 48 pixels, as shards."""
    out = tmp_path_factory.mktemp("clips")
    generate(out, train=24, val=6, test=0, novel=0, size=48, seed=3, workers=1, video=True)
    return out

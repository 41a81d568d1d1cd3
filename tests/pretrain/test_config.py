"""Configuration: YAML and command line make one object, and errors name the key."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import UsageError
from eval.finetuning.config import load_finetune_config
from pretrain.build import build_model
from pretrain.config import RunConfig
from pretrain.config_file import apply_overrides, differences, load_config, parse_config, to_yaml
from pretrain.objectives import OBJECTIVES

LOSSES = (
    "contrastive",
    "matching",
    "masked_language",
    "global_image",
    "global_text",
    "local_image",
    "local_text",
)
RECIPES = Path(__file__).parents[2] / "launch" / "recipes"


def test_a_written_configuration_reads_back_the_same(config, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_overrides_win_over_the_file(settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    words = "--optimizer.lr 2e-4 --data.train.0.weight=3 --validation.path x --steps 9"
    config = load_config(tmp_path / "c.yaml", words.split())
    assert config.optimizer.lr == 2e-4
    assert config.data.train[0].weight == 3
    assert config.validation.path == "x"
    assert config.steps == 9


def test_the_weight_of_an_objective_is_a_key_like_any_other(settings):
    apply_overrides(settings, ["--objectives.matching", "0.5"])
    config = parse_config(RunConfig, settings, "run.yaml")
    assert config.objectives.matching == 0.5
    weights = {o.name: getattr(config.objectives, o.name) for o in OBJECTIVES}
    assert weights.pop("matching") == 0.5
    # The losses of the paper are on; any other one is optional.
    by_default = {"contrastive": 1.0, "masked_language": 1.0}
    by_default |= {"global_image": 1.0, "global_text": 1.0, "local_image": 0.2, "local_text": 0.2}
    assert {name: weight for name, weight in weights.items() if weight} == by_default
    apply_overrides(settings, ["--objectives.matchin", "0.5"])
    with pytest.raises(UsageError, match=r"did you mean objectives\.matching\?"):
        parse_config(RunConfig, settings, "run.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimzer.lr", 1, "unknown key optimzer; did you mean optimizer?"),
        ("optimizer.larning_rate", 1, "unknown key optimizer.larning_rate"),
        ("data.train.0.weigth", 1, "did you mean data.train.0.weight?"),
        ("data.masking.dorp", 0.5, "did you mean data.masking.drop?"),
        ("validation.evry", 3, "did you mean validation.every?"),
        ("steps", "many", "steps: Input should be a valid integer"),
        ("precision", "fp8", "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        ("checkpoint.keep", 0, "checkpoint.keep must be at least 1"),
        ("data.masking.drop", 1.5, "masking.drop must be at least 0 and below 1"),
        ("steps", 0, "steps and micro_batches must be at least 1"),
    ],
)
def test_errors_name_the_key(settings, key, value, message):
    with pytest.raises(UsageError) as raised:
        apply_overrides(settings, [f"--{key}", str(value)])
        parse_config(RunConfig, settings, "run.yaml")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration"),
        (b"[1, 2]", "must hold a mapping"),
        (b"a: [", "is not YAML"),
        (b"\xff\xfe", "it is not a text file"),
        (b"preset: [published]", "unknown preset"),
    ],
)
def test_files_without_a_configuration_are_refused(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_config(path)


def test_a_preset_fills_in_the_keys_that_are_left_out(settings, tmp_path):
    settings |= {"preset": "published", "objectives": {"matching_negatives": "random"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(tmp_path / "c.yaml")
    assert config.objectives.gradients == "published"
    assert config.objectives.global_text_negatives == "rank"
    assert config.data.masking.mlm_unit == "token" and config.data.augment.flip
    assert config.objectives.matching_negatives == "random"
    assert config.model.vision["num_hidden_layers"] == 1  # the file's, not the preset's 11
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "resolved.yaml") == config
    without = load_config(tmp_path / "c.yaml", ["--model.vision", "{}"])
    assert without.model.vision == {"num_hidden_layers": 11}


# The others are options of stages.
TRAINING = [path for path in sorted(RECIPES.glob("*.yaml")) if "\nrun:" in "\n" + path.read_text()]


@pytest.mark.parametrize("recipe", TRAINING, ids=lambda path: path.stem)
def test_recipes_are_configurations_and_read_back_the_same(recipe, tmp_path):
    load = load_finetune_config if "task" in yaml.safe_load(recipe.read_text()) else load_config
    config = load(recipe)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config


def test_an_unknown_preset_is_named(settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="unknown preset 'publishd'; there is published"):
        load_config(tmp_path / "c.yaml", ["--preset", "publishd"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch.video", 4, "batch.video is 4 but data.video is missing"),
        ("batch.image", 0, "batch.image and batch.video are both 0"),
        ("batch.image", 1, "must be 0 or at least 2"),
        ("data.video", {"train": []}, "data.video.train names no data set"),
        (
            "data.video",
            {"train": [{"path": "x"}], "frames": 0},
            "data.video.frames must be at least 1",
        ),
        ("objectives.temperature_bounds", [0.5, 0.1], "must be positive and ascending"),
        ("objectives.sampled_negatives", 0, "must be at least 1"),
        ("objectives.contrastive", -1, "objectives.contrastive must be a number of 0 or more"),
        ("objectives.local_text", ".nan", "objectives.local_text must be a number of 0 or more"),
        ("objectives", dict.fromkeys(LOSSES, 0), "every loss has weight 0"),
        ("objectives.completion_temperature", ".inf", "completion_temperature must be positive"),
        ("optimizer.lr", -1, "settings: optimizer.lr must be a number of 0 or more"),
        ("optimizer.betas", [1, 1], "optimizer.betas at least 0 and below 1"),
        ("optimizer.max_grad_norm", 0, "optimizer.max_grad_norm must be positive, or null"),
        (
            "data.video",
            {"train": [{"path": "x"}], "image_size": -32},
            "data.video.image_size must be at least 1",
        ),
        ("data.train", [{"path": "x"}, {"path": "x"}], "x is listed twice"),
        ("seed", -1, "seed must be at least 0"),
        ("world", 0, "world must be at least 1"),
    ],
)
def test_impossible_values_are_refused_by_name(settings, key, value, message):
    apply_overrides(settings, [f"--{key}", str(value)])
    with pytest.raises(UsageError, match=message):
        parse_config(RunConfig, settings, "settings")


def test_override_without_a_value_is_an_error(settings):
    with pytest.raises(UsageError, match="--steps needs a value"):
        apply_overrides(settings, ["--steps"])


def test_only_changes_of_what_is_computed_count_as_differences(settings):
    before = parse_config(RunConfig, settings, "a")
    free = "--data.workers 3 --log.every 7 --checkpoint.keep 9 --world 2"
    apply_overrides(settings, free.split())
    assert differences(parse_config(RunConfig, settings, "b"), before) == []
    fixed = "--seed 5 --optimizer.lr 0.5 --model.vision.num_hidden_layers 2 --init_from runs/other"
    apply_overrides(settings, fixed.split())
    changed = differences(parse_config(RunConfig, settings, "c"), before)
    assert changed == ["init_from", "model.vision.num_hidden_layers", "optimizer.lr", "seed"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision.hiden_size", 8, "did you mean model.vision.hidden_size?"),
        ("vision.image_size", 50, "image_size 50 is not a multiple of patch_size 16"),
        ("vision.patch_size", 0, "patch_size of the image tower must be at least 1"),
        ("vision.num_hidden_layers", -1, "num_hidden_layers of the image tower must be at least 1"),
        ("vision.num_hidden_layers", "foo", "num_hidden_layers"),
        ("fusion.max_frames", "x", "max_frames must be a whole number"),
        ("fusion.tie_masked_language_head", "foo", "must be true or false"),
        ("text.vocab_size", 10, "has 10 tokens"),
        ("text.max_position_embeddings", 20, "too small for texts of 32 tokens"),
        ("fusion.fusion_heads", 5, "not a multiple of the number of attention heads"),
        ("vision_from", "/no/such/folder", "/no/such/folder"),
    ],
)
def test_impossible_models_are_refused(settings, tokenizer, key, value, message):
    from data_pipeline.text import Tokenizer

    apply_overrides(settings, [f"--model.{key}", str(value)])
    config = parse_config(RunConfig, settings, "run.yaml")
    with pytest.raises(UsageError) as raised:
        build_model(config.model, Tokenizer.load(tokenizer), config.data.max_text_length)
    assert message in str(raised.value)

"""Fine-tuning through its job and its command: the losses by hand, exact resume, the best checkpoint, refusals."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer
from eval.finetuning.config import load_finetune_config
from eval.questions.vocabulary import Vocabulary
from launch.cli import main
from pretrain.build import adapt_model
from pretrain.loop import train_job
from pretrain.run.checkpoint import load_model, model_folder
from pretrain.task import TaskModel
from tests.eval.colours import pictures, write_colours, write_model, write_tokenizer
from tests.eval.finetune_ranks import job, one_step, settings_of
from tests.pretrain.runs import StopAfter, assert_same_run, rows, status
from tests.pretrain.test_engines import launch

ROOT = Path(__file__).parents[2]
TASKS = ("vqa", "nlvr2", "retrieval")


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Folder with `train`, `val`, `pairs/train`, `pairs/val`, `tokenizer` and a tiny `model`."""
    root = tmp_path_factory.mktemp("colours")
    write_colours(root, "train", 40)
    write_colours(root, "val", 12)
    write_model(root / "model", write_tokenizer(root / "tokenizer"))
    write_model(root / "steady", root / "tokenizer", dropout=0.0)
    return root


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Folder with `train` and `val` of generated clips."""
    out = tmp_path_factory.mktemp("clips")
    generate(out, train=12, val=4, test=0, novel=0, size=48, seed=3, workers=1, video=True)
    return out


@pytest.fixture(params=TASKS)
def settings(request, colours, tmp_path) -> dict:
    return settings_of(request.param, colours, tmp_path / "run")


def test_resume_is_bitwise_the_undisturbed_run(settings, tmp_path):
    whole, parts = (
        settings | {"run": str(tmp_path / name), "micro_batches": 2} for name in ("whole", "parts")
    )
    assert train_job(job(whole), StopAfter()) == 0
    assert train_job(job(parts), StopAfter(3)) == 75
    assert status(parts["run"]) == {"state": "preempted", "step": 3, "reason": "SIGTERM"}
    assert train_job(job(parts), StopAfter()) == 0
    assert_same_run(whole["run"], parts["run"])
    best = [(Path(run["run"]) / "checkpoints" / "best").read_text() for run in (whole, parts)]
    assert best[0] == best[1]
    measured = [
        row for row in rows(whole["run"]) if any(name.startswith("validation/") for name in row)
    ]
    assert [row["step"] for row in measured] == [2, 4]


def losses_by_hand(task: str, model, batch) -> dict[str, torch.Tensor]:
    """The losses as the docs define them, pair by pair, through the model's plainest methods."""

    def pooled(row: int, pixels: torch.Tensor, second: bool = False) -> torch.Tensor:
        length = int(batch.text_mask[row].sum())
        ids = batch.text_ids[row : row + 1, :length]
        mask = torch.ones_like(ids)
        text = model.text_side(model.encode_text(ids, mask), mask)
        frames = len(pixels) if pixels.ndim == 4 else 1
        image = model.image_side(model.encode_image(pixels[None]), second)
        [(text_states, image_states)] = model.fuse_pairs(text, mask, image, [("all", "all")])
        return model.pool(text_states, image_states[:, :frames])

    size = len(batch.keys)
    if task == "vqa":
        logits = torch.cat([model.classify(pooled(row, batch.pixels[row])) for row in range(size)])
        chance, wanted = logits.sigmoid(), batch.targets.double()
        losses = -(wanted * chance.log() + (1 - wanted) * (1 - chance).log())
        return {"classification": losses.sum(1).mean()}
    if task == "nlvr2":
        both = [
            (pooled(r, batch.pixels[r, 0]), pooled(r, batch.pixels[r, 1], True))
            for r in range(size)
        ]
        logits = torch.cat([model.classify(torch.cat(pair, dim=1)) for pair in both])
        return {"classification": -(batch.targets.double() * logits.log_softmax(1)).sum(1).mean()}
    ranking = []
    for row in range(size):
        group = range(row // 4 * 4, row // 4 * 4 + 4)
        # A colour may come twice in a group; its other caption is right too, and does not take
        # part.
        texts = [
            t for t in group if t == row or not (batch.identity[t] == batch.identity[row]).any()
        ]
        logits = torch.cat([model.match(pooled(text, batch.pixels[row])) for text in texts])
        ranking.append(-(logits[:, 1] - logits[:, 0]).log_softmax(0)[texts.index(row)])
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    text = F.normalize(
        model.contrastive_text(model.encode_text(batch.text_ids, batch.text_mask)), dim=1
    )
    image = F.normalize(model.contrastive_image(model.encode_image(batch.pixels), frames), dim=1)
    scores = text @ image.T / model.temperature
    same = (batch.identity[:, None] == batch.identity).any(2) & ~torch.eye(size, dtype=torch.bool)
    scores = scores.masked_fill(same, -torch.inf)
    contrast = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean() / 2
    return {"ranking": torch.stack(ranking).mean(), "contrastive": contrast}


def test_losses_and_gradients_are_those_written_by_hand(settings):
    model, [batch], losses, gradients = one_step(settings)
    model.zero_grad()
    expected = losses_by_hand(settings["task"], model, batch)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-6), name
    sum(expected.values()).backward()
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        theirs = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, theirs, atol=1e-6, rtol=1e-4, msg=name)


def test_micro_batches_give_the_gradient_of_the_whole_step(settings):
    _, _, losses, whole = one_step(settings)
    _, _, found, parts = one_step(settings, micro_batches=2)
    assert {n: v.item() for n, v in found.items()} == pytest.approx(
        {n: v.item() for n, v in losses.items()}, rel=1e-6
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_questions_may_come_one_at_a_time_and_in_odd_numbers(task, colours, tmp_path):
    settings = settings_of(task, colours, tmp_path) | {"batch": {"image": 3}}
    _, _, losses, whole = one_step(settings)
    _, batches, found, parts = one_step(settings, micro_batches=3)
    assert [len(batch.keys) for batch in batches] == [1, 1, 1]
    assert found["classification"].item() == pytest.approx(
        losses["classification"].item(), rel=1e-6
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def steady(task: str, colours: Path, run: Path) -> dict:
    """Settings without dropout, and with a rate that makes no steps of rounding, so that two runs can be compared."""
    settings = settings_of(task, colours, run) | {
        "batch": {"image": 16},
        "init_from": str(colours / "steady"),
        "steps": 2,
    }
    return settings | {
        "init_from": str(colours / "steady"),
        "optimizer": {"lr": 1e-6, "max_grad_norm": None},
    }


@pytest.fixture(scope="module", params=["ddp", "zero3"])
def on_two_ranks(request, colours, tmp_path_factory) -> tuple[str, Path]:
    """Engine, and the folder of what two ranks computed under it."""
    folder = tmp_path_factory.mktemp(request.param)
    runs = [steady(task, colours, folder / task) | {"micro_batches": 2} for task in TASKS]
    (folder / "runs.json").write_text(json.dumps(runs))
    script = Path(__file__).with_name("finetune_ranks.py")
    launch(request.param, folder, str(script), str(folder / "runs.json"), str(folder))
    return request.param, folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(TASKS)), ids=TASKS)
def test_two_ranks_make_the_run_of_one_process(on_two_ranks, number, colours, tmp_path):
    engine, folder = on_two_ranks
    settings = steady(TASKS[number], colours, tmp_path / "run")
    assert train_job(job(settings), StopAfter()) == 0
    for ours, alone in zip(rows(folder / TASKS[number]), rows(tmp_path / "run"), strict=True):
        assert ours["keys"] == alone["keys"]
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        for name in alone.keys() & {"validation/accuracy", "validation/mean_recall"}:
            # Equal captions tie but for their rounding.
            assert ours[name] == pytest.approx(alone[name], abs=1), name
    if engine == "ddp":
        found = load_file(folder / f"{number}.safetensors")
        _, _, losses, gradients = one_step(settings)
        expected = gradients | {name: value.reshape(1) for name, value in losses.items()}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("task", ["vqa", pytest.param("nlvr2", marks=pytest.mark.slow)])
def test_a_classifier_learns_what_it_is_asked(task, colours, tmp_path):
    settings = settings_of(task, colours, tmp_path / "run") | {"steps": 50, "batch": {"image": 16}}
    settings["validation"]["every"] = settings["log"]["every"] = settings["checkpoint"]["every"] = (
        50
    )
    assert train_job(job(settings), StopAfter()) == 0
    measured = rows(settings["run"])[-1]["validation/accuracy"]
    assert measured > 90
    stage = import_module(f"eval.stages.{task}").evaluate
    result = stage(settings["run"], settings["validation"]["path"], tmp_path / "result")
    assert next(m for m in result.metrics if m.name == "accuracy").value == pytest.approx(measured)


def test_the_best_checkpoint_stays_and_is_what_a_run_means(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run") | {"steps": 8}
    settings["validation"]["every"] = 1
    # The rate rises for long: the last step is hardly the best one.
    settings["optimizer"] = {"lr": 0.05, "warmup": 1.0}
    settings["checkpoint"] = {"every": 1, "keep": 1}
    train_job(job(settings), StopAfter())
    measured = {row["step"]: row["validation/accuracy"] for row in rows(settings["run"])}
    first = min(step for step, value in measured.items() if value == max(measured.values()))
    checkpoints = tmp_path / "run" / "checkpoints"
    marked = json.loads((checkpoints / "best").read_text())
    assert marked == {
        "checkpoint": f"step-{first:08d}",
        "metric": "validation/accuracy",
        "value": measured[first],
    }
    assert {p.name for p in checkpoints.glob("step-*")} == {marked["checkpoint"], "step-00000008"}
    assert model_folder(tmp_path / "run") == checkpoints / marked["checkpoint"] / "model"
    assert first < 8 and list(load_model(tmp_path / "run").config.classifier_labels)


def test_a_damaged_best_checkpoint_is_passed_over_with_a_message(colours, tmp_path, capsys):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(2))
    best = tmp_path / "run" / "checkpoints" / "best"
    older = tmp_path / "run" / "checkpoints" / "step-00000001"
    shutil.copytree(model_folder(tmp_path / "run").parent, older)
    (older / "trainer.json").write_text("damaged")
    best.write_text(json.dumps({"checkpoint": older.name}))
    assert model_folder(tmp_path / "run").parent.name == "step-00000002"
    assert "is passed over: trainer.json has" in capsys.readouterr().err
    best.write_text("{")
    assert model_folder(tmp_path / "run").parent.name == "step-00000002"


def test_a_run_that_goes_back_forgets_a_best_checkpoint_of_the_branch_it_left(colours, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings["checkpoint"] = {"every": 1, "keep": 9}
    settings["validation"]["every"] = 3
    train_job(job(settings), StopAfter(3))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert json.loads((checkpoints / "best").read_text())["checkpoint"] == "step-00000003"
    train_job(job(settings), StopAfter(1), resume=str(checkpoints / "step-00000001"))
    assert not (checkpoints / "best").exists()
    assert model_folder(tmp_path / "run").parent.name == "step-00000002"


def test_the_best_of_another_split_is_forgotten(colours, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(2))
    best = tmp_path / "run" / "checkpoints" / "best"
    assert json.loads(best.read_text())["checkpoint"] == "step-00000002"
    other = job(settings, validation=settings["validation"] | {"limit": 5})
    train_job(other, StopAfter(1), allow_change=("validation.limit",))
    assert not best.exists()
    train_job(other, StopAfter())
    assert json.loads(best.read_text())["checkpoint"] == "step-00000004"


def test_the_vocabulary_is_that_of_the_training_data_and_stays(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(1))
    saved = Vocabulary.load(tmp_path / "run" / "answers.json")
    assert saved == Vocabulary.build([colours / "train"])
    assert tuple(load_model(tmp_path / "run").config.classifier_labels) == saved.labels
    given = settings | {
        "run": str(tmp_path / "given"),
        "answers": str(tmp_path / "run" / "answers.json"),
    }
    train_job(job(given), StopAfter(1))
    assert Vocabulary.load(tmp_path / "given" / "answers.json") == saved


def test_a_fine_tuned_model_starts_another_task_with_a_new_classifier_and_the_same_one_with_its_own(
    colours, tmp_path
):
    train_job(job(settings_of("vqa", colours, tmp_path / "vqa")), StopAfter(1))
    tokenizer = Tokenizer.load(colours / "tokenizer")
    trained = load_model(tmp_path / "vqa")
    same = adapt_model(
        tmp_path / "vqa", tokenizer, max_text_length=16, labels=trained.config.classifier_labels
    )
    assert torch.equal(same.classifier[0].weight, trained.classifier[0].weight)
    pairs = adapt_model(
        tmp_path / "vqa", tokenizer, max_text_length=16, labels=("False", "True"), images=2
    )
    assert pairs.classifier[0].weight.shape == (64, 128)
    assert torch.equal(pairs.token_type.weight, trained.token_type.weight[[0, 1, 1]])
    assert adapt_model(tmp_path / "vqa", tokenizer, max_text_length=16).classifier is None


def test_a_model_of_longer_clips_keeps_their_first_and_last_moment_on_shorter_ones(
    colours, tmp_path
):
    shared = {"tokenizer": Tokenizer.load(colours / "tokenizer"), "max_text_length": 16}
    longer = adapt_model(colours / "model", frames=4, **shared)
    longer.temporal_embedding.data.normal_()
    longer.save_pretrained(tmp_path / "longer")
    shorter = adapt_model(tmp_path / "longer", frames=2, **shared)
    torch.testing.assert_close(shorter.temporal_embedding, longer.temporal_embedding[[0, 3]])
    assert torch.equal(
        adapt_model(tmp_path / "longer", **shared).temporal_embedding, longer.temporal_embedding
    )


def test_pictures_may_be_larger_than_in_pre_training(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    train_job(job(settings, image_size=48), StopAfter(1))
    model = load_model(tmp_path / "run")
    assert model.config.image_size == 48 and model.config.num_patches == 9
    with pytest.raises(UsageError, match="image_size 40 is not a multiple of patch_size 16"):
        train_job(job(settings, image_size=40, run=str(tmp_path / "odd")), StopAfter(1))


def test_clips_are_ranked_as_pictures_are(colours, clips, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 4}
    settings |= {"batch": {"image": 0, "video": 8}, "validation": None}
    model, [batch], losses, gradients = one_step(settings)
    expected = losses_by_hand("retrieval", model, batch)
    assert batch.kind == "video" and "temporal_embedding" in gradients
    assert {n: v.item() for n, v in losses.items()} == pytest.approx(
        {n: v.item() for n, v in expected.items()}
    )
    settings["validation"] = {"path": str(clips / "val"), "every": 1, "frames": 2}
    assert train_job(job(settings), StopAfter(1)) == 75
    assert "validation/mean_recall" in rows(settings["run"])[0]


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("vqa", {"init_from": None}, "init_from is missing"),
        ("retrieval", {"answers": "answers.json"}, "answers are for vqa, the task is retrieval"),
        ("vqa", {"batch": {"image": 0, "video": 4}}, "data.video is missing"),
        ("vqa", {"image_size": 0}, "image_size must be at least 1"),
        ("caption", {}, "task"),
        ("vqa", {"objectives": {}}, "unknown key objectives"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(task, changed, message, colours, tmp_path):
    with pytest.raises(UsageError, match=message):
        job(settings_of("vqa", colours, tmp_path) | {"task": task}, **changed)


def test_training_data_are_refused_for_validation_under_any_name(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    (tmp_path / "link").symlink_to(colours / "train")
    for path in (colours / "train", colours / "val" / ".." / "train", tmp_path / "link"):
        with pytest.raises(UsageError, match="is training data: name another split"):
            job(settings, validation={"path": str(path)})
    shutil.copytree(colours / "train", tmp_path / "copy")
    with pytest.raises(DataError, match="holds the training data of .*: name another split"):
        train_job(job(settings, validation={"path": str(tmp_path / "copy")}), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_does_not_fit_the_task_is_refused_before_the_first_step(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    for changed, message in (
        ({"init_from": str(tmp_path / "nowhere")}, "no such folder"),
        (
            {"data": settings["data"] | {"train": [{"path": str(colours / "pairs" / "train")}]}},
            "holds no images",
        ),
        (
            {"data": settings["data"] | {"max_text_length": 60}},
            "max_position_embeddings 40 is too small",
        ),
        ({"validation": {"path": str(colours / "pairs" / "val")}}, "holds no images"),
        (
            {"validation": {"path": str(colours / "val"), "frames": 2}},
            "validation.frames is for retrieval on clips",
        ),
        ({"answers": str(tmp_path / "no.json")}, "no.json"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            train_job(job(settings, **changed), StopAfter())
    Tokenizer.train(["quite another text"] * 9, 290).save(tmp_path / "other")
    with pytest.raises(UsageError, match="data.tokenizer is not the one"):
        train_job(
            job(settings, data=settings["data"] | {"tokenizer": str(tmp_path / "other")}),
            StopAfter(),
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_a_validation_split_without_answers_is_refused_before_the_first_step(
    task, colours, tmp_path
):
    secret = json.dumps({"questions": [{"id": 1, "question": "is it red"}]}).encode()
    (_, first), (_, second) = pictures("secret", 2)
    members = (
        {"png": first["png"]} if task == "vqa" else {"0.png": first["png"], "1.png": second["png"]}
    )
    write_shards(
        tmp_path / "secret", [("0", members | {"json": secret})], source={"name": "secret"}
    )
    settings = settings_of(task, colours, tmp_path / "run")
    settings |= {"steps": 2, "validation": {"path": str(tmp_path / "secret"), "every": 2}}
    with pytest.raises(DataError, match="secret holds no question with an answer"):
        train_job(job(settings), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_validation_split_that_keeps_unreadable_samples_is_refused_before_the_first_step(
    colours, tmp_path
):
    kept = [{"key": "0001", "file": "0001.png", "reason": "missing", "questions": 2}]
    write_shards(
        tmp_path / "kept", pictures("kept", 4), source={"name": "kept", "kept_unreadable": kept}
    )
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings |= {"steps": 2, "validation": {"path": str(tmp_path / "kept"), "every": 2}}
    with pytest.raises(
        DataError, match=r"1 unreadable samples \(the first is 0001\).*--unreadable leave-out"
    ):
        train_job(job(settings), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_vocabulary_that_knows_no_answer_of_the_training_data_is_refused(colours, tmp_path):
    file = tmp_path / "answers.json"
    Vocabulary(("tabby",), (("tabby", 0),), 9, (("cats", "sha256:0"),)).save(file)
    with pytest.raises(
        DataError, match=r"answers\.json has none of the answers to the first 1,000 questions"
    ):
        train_job(
            job(settings_of("vqa", colours, tmp_path / "run"), answers=str(file)), StopAfter()
        )


def test_scores_that_are_not_finite_are_no_answers(colours, tmp_path):
    made = job(settings_of("vqa", colours, tmp_path))
    tokenizer = Tokenizer.load(colours / "tokenizer")
    model = made.build(tokenizer, None).eval()
    task = made.task(tokenizer, model)
    assert 0 <= task.validate(TaskModel(task, model), torch.device("cpu"))["accuracy"] <= 100
    model.classifier[-1].bias.data[0] = torch.nan
    with pytest.raises(
        NumericsError, match="scores are not finite for 24 of 24 questions of .*val"
    ):
        task.validate(TaskModel(task, model), torch.device("cpu"))


def test_a_run_goes_on_with_the_configuration_that_it_was_started_with(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(1))
    other = settings["validation"] | {"limit": 5}  # another split would have another best
    with pytest.raises(
        UsageError, match=r"another configuration \(optimizer.lr, validation.limit\)"
    ):
        train_job(
            job(settings, optimizer={"lr": 1.0, "warmup": 0.2}, validation=other), StopAfter(1)
        )
    with pytest.raises(
        UsageError, match=r"another configuration \(init_from\)"
    ):  # it would not be read
        train_job(job(settings, init_from=str(colours / "steady")), StopAfter(1))
    train_job(job(settings, validation=settings["validation"] | {"batch_size": 1}), StopAfter(1))
    saved = load_finetune_config(tmp_path / "run" / "config.yaml", ["--validation.batch_size", "5"])
    assert saved == job(settings).config


def test_the_command_fine_tunes_and_explains_itself(colours, tmp_path, capsys):
    file = tmp_path / "vqa.yaml"
    file.write_text(yaml.safe_dump(settings_of("vqa", colours, tmp_path / "run")))
    assert main(["finetune", str(file), "--steps", "1"]) == 0
    assert status(tmp_path / "run")["state"] == "complete"
    assert main(["finetune", str(file), "--tasks", "vqa"]) == 2
    assert "finetune: error" in capsys.readouterr().err
    assert main(["data", "order", "--config", str(file)]) == 0
    assert len(json.loads(capsys.readouterr().out)["keys"]) == 8


PUBLISHED = {  # pixels, samples a step, learning rate, multiplier of the head, of fusion
    "vqa": (384, 512, 5e-6, 50, 10),
    "nlvr2": (288, 256, 1e-5, 10, 10),
    "retrieval_flickr30k": (384, 512, 5e-6, 10, 10),
    "retrieval_coco": (384, 512, 5e-6, 5, 5),
    "retrieval_lsmdc": (224, 256, 5e-6, 5, 5),
    "retrieval_msrvtt": (224, 256, 5e-6, 5, 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_hold_the_published_numbers(name):
    config = load_finetune_config(ROOT / "launch" / "recipes" / f"{name}.yaml")
    [mixture] = config.mixtures.values()
    rates = config.optimizer
    found = (
        config.image_size,
        mixture.global_batch,
        rates.lr,
        rates.head_multiplier,
        rates.fusion_multiplier,
    )
    assert found == PUBLISHED[name]
    clips = name in ("retrieval_lsmdc", "retrieval_msrvtt")
    assert (mixture.frames, rates.warmup) == ((4, 0.05) if clips else (None, 0.1))
    assert (
        config.data.max_text_length == 50
        and rates.weight_decay == 0.01
        and not config.data.augment.flip
    )
    assert mixture.group == (16 if config.task == "retrieval" else None)


@pytest.mark.parametrize("name", ["demo_vqa", "demo_nlvr2"])
def test_demo_recipes_parse(name):
    assert load_finetune_config(
        ROOT / "launch" / "recipes" / f"{name}.yaml"
    ).task == name.removeprefix("demo_")

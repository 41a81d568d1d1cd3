"""Fine-tuning by its job and command: losses by hand, exact resume, best checkpoint, refusals."""

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
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer
from eval.finetuning.config import load_finetune_config
from eval.metrics.vqa_accuracy import accuracy
from eval.questions.vocabulary import Vocabulary, read_questions
from launch.cli import main
from pretrain.build import adapt_model
from pretrain.loop import train_job
from pretrain.protocols import TaskModel
from pretrain.run.checkpoint import load_model, model_folder
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
    """Folder with `train` and `val` of generated videos."""
    out = tmp_path_factory.mktemp("clips")
    generate(out, train=12, val=4, test=0, novel=0, size=48, seed=3, workers=1, video=True)
    return out


@pytest.fixture(params=TASKS)
def settings(request, colours, tmp_path) -> dict:
    return settings_of(request.param, colours, tmp_path / "run")


def test_resume_is_bitwise_the_undisturbed_run(settings, tmp_path):
    settings["micro_batches"] = 2
    whole = settings | {"run": str(tmp_path / "whole")}
    parts = settings | {"run": str(tmp_path / "parts")}
    assert train_job(job(whole), StopAfter()) == 0
    assert train_job(job(parts), StopAfter(3)) == 75
    assert status(parts["run"]) == {"state": "preempted", "step": 3, "reason": "SIGTERM"}
    assert train_job(job(parts), StopAfter()) == 0
    assert_same_run(whole["run"], parts["run"])
    best = [(Path(run["run"]) / "checkpoints" / "best").read_text() for run in (whole, parts)]
    assert best[0] == best[1]
    metric = "validation/mean_recall" if settings["task"] == "retrieval" else "validation/accuracy"
    assert [row["step"] for row in rows(whole["run"]) if metric in row] == [2, 4]


def losses_by_hand(task: str, model, batch) -> dict[str, torch.Tensor]:
    """The losses as the docs define them, pair by pair, with the simplest methods of the model."""

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
        probability, target = logits.sigmoid(), batch.targets.double()
        losses = -(target * probability.log() + (1 - target) * (1 - probability).log())
        return {"classification": losses.sum(1).mean()}
    if task == "nlvr2":
        logits = []
        for row in range(size):
            first = pooled(row, batch.pixels[row, 0])
            second = pooled(row, batch.pixels[row, 1], second=True)
            logits.append(model.classify(torch.cat([first, second], dim=1)))
        logits = torch.cat(logits)
        return {"classification": -(batch.targets.double() * logits.log_softmax(1)).sum(1).mean()}
    ranking = []
    for row in range(size):
        group = range(row // 4 * 4, row // 4 * 4 + 4)
        # A colour may come twice in a group; its other caption is right too, and is left out.
        agrees = (batch.identity == batch.identity[row]).any(1)
        texts = [text for text in group if text == row or not agrees[text]]
        logits = torch.cat([model.match(pooled(text, batch.pixels[row])) for text in texts])
        ranking.append(-(logits[:, 1] - logits[:, 0]).log_softmax(0)[texts.index(row)])
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    text_tokens = model.encode_text(batch.text_ids, batch.text_mask)
    text = F.normalize(model.contrastive_text(text_tokens), dim=1)
    image = F.normalize(model.contrastive_image(model.encode_image(batch.pixels), frames), dim=1)
    scores = text @ image.T / model.temperature
    same = (batch.identity[:, None] == batch.identity).any(2) & ~torch.eye(size, dtype=torch.bool)
    scores = scores.masked_fill(same, -torch.inf)
    contrast = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean() / 2
    return {"ranking": torch.stack(ranking).mean(), "contrastive": contrast}


def test_losses_and_gradients_equal_those_by_hand(settings):
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
    _, _, mean_losses, parts = one_step(settings, micro_batches=2)
    assert values(mean_losses) == pytest.approx(values(losses), rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_questions_may_come_one_at_a_time_and_in_odd_numbers(task, colours, tmp_path):
    settings = settings_of(task, colours, tmp_path) | {"batch": {"image": 3}}
    _, _, losses, whole = one_step(settings)
    _, batches, mean_losses, parts = one_step(settings, micro_batches=3)
    assert [len(batch.keys) for batch in batches] == [1, 1, 1]
    assert values(mean_losses) == pytest.approx(values(losses), rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def steady(task: str, colours: Path, run: Path) -> dict:
    """Settings of two comparable runs: no dropout, and a learning rate that hides rounding."""
    return settings_of(task, colours, run) | {
        "batch": {"image": 16},
        "init_from": str(colours / "steady"),
        "steps": 2,
        "optimizer": {"lr": 1e-6, "max_grad_norm": None},
    }


@pytest.fixture(scope="module", params=["ddp", "zero3"])
def on_two_ranks(request, colours, tmp_path_factory) -> tuple[str, Path]:
    """An engine, and the folder with the results of two ranks under it."""
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
        together = load_file(folder / f"{number}.safetensors")
        _, _, losses, gradients = one_step(settings)
        expected = gradients | {name: value.reshape(1) for name, value in losses.items()}
        assert together.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(together[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("task", ["vqa", pytest.param("nlvr2", marks=pytest.mark.slow)])
def test_a_classifier_learns_to_answer(task, colours, tmp_path):
    settings = settings_of(task, colours, tmp_path / "run") | {"steps": 50, "batch": {"image": 16}}
    for key in ("validation", "log", "checkpoint"):
        settings[key]["every"] = 50
    assert train_job(job(settings), StopAfter()) == 0
    measured = rows(settings["run"])[-1]["validation/accuracy"]
    assert measured > 90
    stage = import_module(f"eval.stages.{task}").evaluate
    result = stage(settings["run"], settings["validation"]["path"], tmp_path / "result")
    assert next(m for m in result.metrics if m.name == "accuracy").value == pytest.approx(measured)


def test_the_best_checkpoint_stays_and_represents_the_run(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run") | {"steps": 8}
    settings["validation"]["every"] = 1
    # The learning rate rises to the end: the last step is hardly the best one.
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


def test_a_run_that_goes_back_forgets_a_later_best_checkpoint(colours, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings["checkpoint"] = {"every": 1, "keep": 9}
    settings["validation"]["every"] = 3
    train_job(job(settings), StopAfter(3))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert json.loads((checkpoints / "best").read_text())["checkpoint"] == "step-00000003"
    train_job(job(settings), StopAfter(1), resume=str(checkpoints / "step-00000001"))
    assert not (checkpoints / "best").exists()
    assert model_folder(tmp_path / "run").parent.name == "step-00000002"


def test_a_best_value_of_another_validation_split_is_forgotten(colours, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(2))
    best = tmp_path / "run" / "checkpoints" / "best"
    assert json.loads(best.read_text())["checkpoint"] == "step-00000002"
    other = job(settings, validation=settings["validation"] | {"limit": 5})
    train_job(other, StopAfter(1), allow_change=("validation.limit",))
    assert not best.exists()
    train_job(other, StopAfter())
    assert json.loads(best.read_text())["checkpoint"] == "step-00000004"


def test_the_vocabulary_comes_from_the_training_data_and_stays(colours, tmp_path):
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


def test_a_fine_tuned_model_keeps_its_classifier_only_for_the_same_task(colours, tmp_path):
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


def test_fewer_frames_keep_the_embeddings_of_the_first_and_last_moment(colours, tmp_path):
    shared = {"tokenizer": Tokenizer.load(colours / "tokenizer"), "max_text_length": 16}
    longer = adapt_model(colours / "model", frames=4, **shared)
    longer.temporal_embedding.data.normal_()
    longer.save_pretrained(tmp_path / "longer")
    shorter = adapt_model(tmp_path / "longer", frames=2, **shared)
    torch.testing.assert_close(shorter.temporal_embedding, longer.temporal_embedding[[0, 3]])
    assert torch.equal(
        adapt_model(tmp_path / "longer", **shared).temporal_embedding, longer.temporal_embedding
    )


def test_images_may_be_larger_than_in_pre_training(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    train_job(job(settings, image_size=48), StopAfter(1))
    model = load_model(tmp_path / "run")
    assert model.config.image_size == 48 and model.config.num_patches == 9
    with pytest.raises(UsageError, match="image_size 40 is not a multiple of patch_size 16"):
        train_job(job(settings, image_size=40, run=str(tmp_path / "odd")), StopAfter(1))


def test_videos_are_ranked_as_images_are(colours, clips, tmp_path):
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 4}
    settings |= {"batch": {"image": 0, "video": 8}, "validation": None}
    model, [batch], losses, gradients = one_step(settings)
    expected = losses_by_hand("retrieval", model, batch)
    assert batch.kind == "video" and "temporal_embedding" in gradients
    assert values(losses) == pytest.approx(values(expected))
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


def test_training_data_are_refused_for_validation_under_any_path(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    (tmp_path / "link").symlink_to(colours / "train")
    for path in (colours / "train", colours / "val" / ".." / "train", tmp_path / "link"):
        with pytest.raises(UsageError, match="is training data: name another split"):
            job(settings, validation={"path": str(path)})
    shutil.copytree(colours / "train", tmp_path / "copy")
    with pytest.raises(DataError, match="holds the training data of .*: name another split"):
        train_job(job(settings, validation={"path": str(tmp_path / "copy")}), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_settings_that_do_not_fit_the_task_are_refused_before_the_first_step(colours, tmp_path):
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
            "validation.frames is for retrieval on videos",
        ),
        ({"answers": str(tmp_path / "no.json")}, "no.json"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            train_job(job(settings, **changed), StopAfter())
    Tokenizer.train(["quite another text"] * 9, 290).save(tmp_path / "other")
    other_tokenizer = settings["data"] | {"tokenizer": str(tmp_path / "other")}
    with pytest.raises(UsageError, match="data.tokenizer is not the one"):
        train_job(job(settings, data=other_tokenizer), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_a_validation_split_without_answers_is_refused_before_the_first_step(
    task, colours, tmp_path
):
    secret = json.dumps({"questions": [{"id": 1, "question": "is it red"}]}).encode()
    (_, first), (_, second) = pictures("secret", 2)
    members = {"png": first["png"]}
    if task == "nlvr2":
        members = {"0.png": first["png"], "1.png": second["png"]}
    sample = ("0", members | {"json": secret})
    write_shards(tmp_path / "secret", [sample], source={"name": "secret"})
    settings = settings_of(task, colours, tmp_path / "run")
    settings |= {"steps": 2, "validation": {"path": str(tmp_path / "secret"), "every": 2}}
    with pytest.raises(DataError, match="secret holds no question with an answer"):
        train_job(job(settings), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_validation_split_that_keeps_unreadable_samples_is_refused_before_the_first_step(
    colours, tmp_path
):
    unreadable = [{"key": "0001", "file": "0001.png", "reason": "missing", "questions": 2}]
    source = {"name": "kept", "kept_unreadable": unreadable}
    write_shards(tmp_path / "kept", pictures("kept", 4), source=source)
    settings = settings_of("retrieval", colours, tmp_path / "run")
    settings |= {"steps": 2, "validation": {"path": str(tmp_path / "kept"), "every": 2}}
    message = r"1 unreadable samples \(the first is 0001\).*--unreadable leave-out"
    with pytest.raises(DataError, match=message):
        train_job(job(settings), StopAfter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_vocabulary_without_an_answer_of_the_training_data_is_refused(colours, tmp_path):
    file = tmp_path / "answers.json"
    Vocabulary(("tabby",), (("tabby", 0),), 9, (("cats", "sha256:0"),)).save(file)
    settings = settings_of("vqa", colours, tmp_path / "run")
    message = r"answers\.json has none of the answers to the first 1,000 questions"
    with pytest.raises(DataError, match=message):
        train_job(job(settings, answers=str(file)), StopAfter())


@torch.no_grad()
def test_validation_scores_what_the_model_answers_and_refuses_scores_that_are_not_finite(
    colours, tmp_path
):
    vqa = job(settings_of("vqa", colours, tmp_path))
    tokenizer = Tokenizer.load(colours / "tokenizer")
    model = vqa.build(tokenizer, None).eval()
    task = vqa.task(tokenizer, model)
    questions = [q for _, q in read_questions(Manifest.load(colours / "val")) if q.answers]
    scores = {}
    for number, label in enumerate(task.labels):
        # A model that gives the same answer to every question.
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.copy_(torch.eye(len(task.labels))[number])
        measured = task.validate(TaskModel(task, model), torch.device("cpu"))["accuracy"]
        scores[label] = 100 * sum(accuracy(label, q.answers) for q in questions) / len(questions)
        assert measured == pytest.approx(scores[label])
    assert max(scores.values()) > min(scores.values())
    model.classifier[-1].bias[0] = torch.nan
    message = f"scores are not finite for {len(questions)} of {len(questions)} questions of .*val"
    with pytest.raises(NumericsError, match=message):
        task.validate(TaskModel(task, model), torch.device("cpu"))


def test_a_run_resumes_only_with_the_configuration_that_it_was_started_with(colours, tmp_path):
    settings = settings_of("vqa", colours, tmp_path / "run")
    train_job(job(settings), StopAfter(1))
    # On another split, the best value so far would mean nothing.
    validation, optimizer = settings["validation"] | {"limit": 5}, {"lr": 1.0, "warmup": 0.2}
    message = r"another configuration \(optimizer.lr, validation.limit\)"
    with pytest.raises(UsageError, match=message):
        train_job(job(settings, optimizer=optimizer, validation=validation), StopAfter(1))
    # A resumed run would not read it.
    with pytest.raises(UsageError, match=r"another configuration \(init_from\)"):
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


# Pixels, samples per step, learning rate, multiplier of the head, multiplier of fusion.
PUBLISHED = {
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
    pixels, samples, rate, head, fusion = PUBLISHED[name]
    assert (config.image_size, mixture.global_batch) == (pixels, samples)
    assert (rates.lr, rates.head_multiplier, rates.fusion_multiplier) == (rate, head, fusion)
    is_video = name in ("retrieval_lsmdc", "retrieval_msrvtt")
    assert (mixture.frames, rates.warmup) == ((4, 0.05) if is_video else (None, 0.1))
    assert config.data.max_text_length == 50
    assert rates.weight_decay == 0.01
    assert not config.data.augment.flip
    assert mixture.group == (16 if config.task == "retrieval" else None)


@pytest.mark.parametrize("name", ["demo_vqa", "demo_nlvr2"])
def test_demo_recipes_parse(name):
    config = load_finetune_config(ROOT / "launch" / "recipes" / f"{name}.yaml")
    assert config.task == name.removeprefix("demo_")

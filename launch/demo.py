"""`make demo`: the whole chain on the embedded data, from drawn scenes to a report.

In: nothing but this repository. Out, in `runs/demo`: data sets, tokenizer, run folders, one folder
of results per stage, exported encoders and `report.html`, with a summary on stdout. A second call
reuses the data, the tokenizer, the encoded features and every finished run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline import errors
from data_pipeline.errors import IncompleteError, UsageError, UserError
from data_pipeline.processes import usable_cores

RECIPES = Path(__file__).parent / "recipes"
# Samples of each split.
TRAIN, VALIDATION, TEST, NOVEL = 12_000, 500, 500, 500
TRAIN_VIDEOS, TEST_VIDEOS = 800, 200
# Entries of the tokenizer: the captions of the scenes use few words.
VOCABULARY = 600


def main() -> int:
    """Run the demo; return the exit code of the process."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    out: Path = parser.parse_args().out
    started = time.monotonic()
    try:
        report = _run_everything(out)
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; run it again to continue", file=sys.stderr)
        return 130
    _summarise(out, report, time.monotonic() - started)
    return 0


def _run_everything(out: Path) -> Path:
    """Run all parts of the demo in order; return the path of the report."""
    data, tokenizer, run = out / "data", out / "tokenizer", out / "pretrain"
    with _part("scenes"):
        _draw_scenes(data)
    with _part("tokenizer"):
        _train_tokenizer(data / "train", tokenizer)
    with _part("pre-training"):
        precision = _precision(run)
        changes = {
            "data.train.0.path": data / "train",
            "validation.path": data / "val",
            "data.tokenizer": tokenizer,
            "precision": precision,
        }
        _train("pretrain", "demo", run, changes)
    results = _evaluate(run, data, out)
    results += _recognise(run, data / "labelled", out)
    results += _fine_tune(run, data, tokenizer, precision, out)
    with _part("export, loaded again without this project"):
        from pretrain.export import export

        export(run, out / "export", check=True)
    with _part("report"):
        from eval.report import write_report

        facts = {"command": "make demo", "training": "accelerate launch -m pretrain demo.yaml"}
        return write_report(results, out / "report.html", run=run, facts=facts, title="GLSCL demo")


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    """Print the name of a part of the demo, and afterwards how long it took."""
    print(f"== {name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"   {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _draw_scenes(data: Path) -> None:
    from data_pipeline.scenes.generate import generate

    generate(data, train=TRAIN, val=VALIDATION, test=TEST, novel=NOVEL, labelled=True)
    # Folder names are part of run configurations, so `clips` stays.
    generate(data / "clips", train=TRAIN_VIDEOS, val=0, test=TEST_VIDEOS, novel=0, video=True)


def _train_tokenizer(train: Path, out: Path) -> None:
    from data_pipeline.text import train_tokenizer

    if not (out / "tokenizer_config.json").is_file():
        train_tokenizer([train], out, VOCABULARY)


def _train(module: str, recipe: str, run: Path, changes: dict[str, Any]) -> None:
    """Train under `accelerate launch` in a separate process; an interrupted run continues."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--num_processes", "1", "--num_machines", "1"]
    # Stated, because accelerate otherwise reads them from the user's own configuration file.
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    # Accelerate would give the process a single thread.
    command += ["--num_cpu_threads_per_process", str(usable_cores())]
    command += ["-m", module, str(RECIPES / f"{recipe}.yaml"), "--run", str(run)]
    for key, value in changes.items():
        command += [f"--{key}", str(value)]
    # Removed first, so that the file that is there afterwards comes from this call.
    (run / "status.json").unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    code = _wait(subprocess.Popen(command, env=environment))
    if (run / "lock").is_file():
        with (run / "lock").open("a") as lock:
            # After a signal the worker outlives its launcher until it has saved.
            fcntl.flock(lock, fcntl.LOCK_EX)
    _check_status(run, code)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the launcher and return its exit code, also after a signal.

    The terminal sends Ctrl-C to the launcher as well; SIGTERM is passed on. In both cases the
    launcher's worker saves before it ends, and that must not be cut short.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_status(run: Path, code: int) -> None:
    """Raise the error that a run ended with.

    A launcher hides the exit code of its worker; the status file tells it.
    """
    status = run / "status.json"
    if not status.is_file():
        raise UsageError(
            f"{run.name} did not start (its launcher exited with {code}); see its message above"
        )
    state = json.loads(status.read_text())
    if state["state"] == "complete":
        return
    # The reason starts with the name of an error class, if an error stopped the run.
    kind = getattr(errors, state["reason"].split(":")[0], IncompleteError)
    reason = state["reason"] or "it was killed"
    where = f"{run.name} is {state['state']} at step {state['step']}"
    raise kind(f"{where}: {reason}; run it again to continue")


def _precision(run: Path) -> str:
    """Return the precision of the existing run, or else the faster one on this machine."""
    import yaml

    # A run cannot change its precision when it is resumed.
    if (run / "config.yaml").is_file():
        return str(yaml.safe_load((run / "config.yaml").read_text())["precision"])
    import torch

    left, right = torch.randn(2048, 256), torch.randn(256, 1024)

    def seconds(dtype: torch.dtype) -> float:
        a, b = left.to(dtype), right.to(dtype)
        return min(_timed(lambda: a @ b) for _ in range(5))

    single, half = seconds(torch.float32), seconds(torch.bfloat16)
    # A step does more than products, so a small advantage might not carry over.
    chosen = "bf16" if half < 0.7 * single else "fp32"
    print(
        f"   bf16 products take {half / single:.2f} times as long as fp32 here: {chosen}",
        file=sys.stderr,
    )
    return chosen


def _timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _evaluate(run: Path, data: Path, out: Path) -> list[Path]:
    """Measure what needs no further training; return the folders of the results."""
    from eval.stages import align, baseline, preference, retrieval, zero_shot

    test = data / "test"
    # A second call of the demo replaces its own results.
    options: dict[str, Any] = {"cache": out / "features", "overwrite": True}
    with _part("retrieval over the test gallery"):
        retrieval.evaluate(run, test, out / "retrieval", **options)
    with _part("true against swapped captions"):
        preference.evaluate(run, test, out / "preference", **options)
    with _part("baseline without a model, and the ceiling"):
        baseline.evaluate(data / "train", test, out / "baseline", overwrite=True)
    with _part("zero-shot classification"):
        zero_shot.evaluate(run, test, out / "zero-shot", **options)
    with _part("alignment of words and regions"):
        align.evaluate(run, test, out / "align", **options)
    return [out / name for name in ("retrieval", "preference", "baseline", "zero-shot", "align")]


def _recognise(run: Path, labelled: Path, out: Path) -> list[Path]:
    """Recognize classes that no training image shows, from a few images of each.

    The commands' defaults for episodes, draws and steps take minutes each; these are smaller.
    Returns the folders of the results.
    """
    import torch

    from eval.stages import few_shot, metric_learning, multi_label

    novel, base, val = labelled / "novel", labelled / "base", labelled / "val"
    options: dict[str, Any] = {"base": base, "cache": out / "features", "overwrite": True}
    with _part("classes from a few images"):
        few_shot.evaluate(run, novel, out / "few-shot", val=val, episodes=200, epochs=2, **options)
    with _part("several labels from a few images"):
        multi_label.evaluate(run, novel, out / "multi-label", val=val, draws=5, epochs=4, **options)
    with _part("nearest neighbors of unseen classes"):
        # The tensors are small here: with a second thread this takes two thirds more time.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        options |= {"steps": 60, "seeds": (0, 1), "folds": 2}
        metric_learning.evaluate(run, novel, out / "metric-learning", **options)
        torch.set_num_threads(threads)
    return [out / name for name in ("few-shot", "multi-label", "metric-learning")]


def _fine_tune(run: Path, data: Path, tokenizer: Path, precision: str, out: Path) -> list[Path]:
    """Fine-tune for questions, statements and videos, and measure each.

    Returns the folders of the results.
    """
    from eval.stages import nlvr2, video_retrieval, vqa, vqa_prior

    train, val, test = data / "train", data / "val", data / "test"
    pairs, videos = data / "pairs", data / "clips"
    shared = {"init_from": run, "data.tokenizer": tokenizer, "precision": precision}
    with _part("fine-tuning: questions"):
        changes = shared | {"data.train.0.path": train, "validation.path": val}
        _train("eval.finetune", "demo_vqa", out / "finetune-vqa", changes)
    with _part("questions, with and without the image"):
        prior = out / "vqa-prior"
        vqa_prior.evaluate(train, test, prior, overwrite=True)
        vqa.evaluate(out / "finetune-vqa", test, out / "vqa", prior=prior, overwrite=True)
    with _part("fine-tuning: statements about two images"):
        changes = shared | {
            "data.train.0.path": pairs / "train",
            "validation.path": pairs / "val",
            # So short a pre-training teaches the fusion layers little; the questions taught more.
            "init_from": out / "finetune-vqa",
        }
        _train("eval.finetune", "demo_nlvr2", out / "finetune-nlvr2", changes)
    with _part("statements"):
        nlvr2.evaluate(out / "finetune-nlvr2", pairs / "test", out / "nlvr2", overwrite=True)
    with _part("fine-tuning: videos"):
        changes = shared | {"data.video.train.0.path": videos / "train"}
        _train("eval.finetune", "demo_video", out / "finetune-video", changes)
    with _part("retrieval of videos"):
        model, result = out / "finetune-video", out / "video-retrieval"
        video_retrieval.evaluate(model, videos / "test", result, frames=3, overwrite=True)
    return [out / name for name in ("vqa", "vqa-prior", "nlvr2", "video-retrieval")]


def _summarise(out: Path, report: Path, seconds: float) -> None:
    """Print the demo's main numbers, each with its interval and what it is compared with."""
    from eval.results.schema import read_result

    def metrics_of(stage: str) -> dict[str, Any]:
        return {metric.name: metric for metric in read_result(out / stage).metrics}

    steps = json.loads((out / "pretrain" / "status.json").read_text())["step"]
    retrieval, baseline = metrics_of("retrieval"), metrics_of("baseline")
    recall, ceiling = retrieval["text_to_image/R@1"], baseline["ceiling/text_to_image/R@1"]
    reranked = retrieval["text_to_image/reranked/R@1"]
    without_model = baseline["text_to_image/R@1"].value
    preferred = metrics_of("preference")["matching/accuracy"]
    zero_shot = metrics_of("zero-shot")["top1"]
    classes, labels = metrics_of("few-shot"), metrics_of("multi-label")
    neighbours, align = metrics_of("metric-learning"), metrics_of("align")
    vqa, nlvr2, video = metrics_of("vqa"), metrics_of("nlvr2"), metrics_of("video-retrieval")
    lines = [
        f"trained {steps} steps under accelerate launch; the demo took {seconds / 60:.1f} minutes",
        f"text-to-image R@1 over {TEST} test images: {_interval(recall)}; "
        f"re-ranked: {_interval(reranked)}",
        f"that is {100 * recall.value / ceiling.value:.0f} % of the ceiling {ceiling.value:.1f} "
        f"(some captions fit several images); the baseline without a model reaches "
        f"{without_model:.1f}, chance {recall.chance:.1f}",
        f"matching prefers the true caption over a swapped one in {_interval(preferred)} "
        "of pairs (chance 50)",
        f"zero-shot classification: {_interval(zero_shot)}",
        "five new classes from one image of each: "
        f"GLIML {_interval(classes['5way-1shot/gliml/accuracy'])}, "
        f"ProtoNet {_interval(classes['5way-1shot/proto/accuracy'])}, "
        f"from their names alone {_interval(classes['5way-1shot/zero_shot/accuracy'])}",
        "several new labels from one image of each: "
        f"mAP {_interval(labels['1shot/lcm/mAP'])} by loss change, "
        f"{_interval(labels['1shot/cross/mAP'])} by cross-interaction, "
        f"{_interval(labels['1shot/zero_shot/mAP'])} from their names alone",
        f"nearest neighbor of a new class: {_interval(neighbours['gdfl/recall@1'])} trained, "
        f"{_interval(neighbours['frozen_cls/recall@1'])} with the untrained tower",
        f"questions, fine-tuned: {_interval(vqa['accuracy'])}; "
        f"without the image {_interval(vqa['prior/accuracy'])}, "
        f"a difference of {_interval(vqa['above_prior/accuracy'], 'points')}",
        f"statements about two images, fine-tuned: {_interval(nlvr2['accuracy'])} (chance 50)",
        "videos, fine-tuned: "
        f"text-to-video R@1 {_interval(video['text_to_video/R@1'])} over {TEST_VIDEOS}",
        f"words attend to their regions: {_interval(align['local/pixel/mass'])} of attention "
        f"inside, {_interval(align['local/pixel/mass_over_uniform'], 'points')} more than "
        "uniform attention",
        f"see {report}; encoders for transformers are in {out / 'export'}, the runs in {out}",
    ]
    print("\n".join(lines))


def _interval(metric: Any, unit: str = "%") -> str:
    return f"{metric.value:.1f} {unit} [{metric.ci95[0]:.1f}, {metric.ci95[1]:.1f}]"


if __name__ == "__main__":
    sys.exit(main())

"""`make demo`: the whole chain on the embedded data, from drawn scenes to a report; it reuses what is valid."""

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
from data_pipeline.cores import usable_cores
from data_pipeline.errors import IncompleteError, UsageError, UserError

RECIPES = Path(__file__).parent / "recipes"
TRAIN, VALIDATION, TEST, NOVEL = 12_000, 500, 500, 500
TRAIN_CLIPS, TEST_CLIPS = 800, 200
VOCABULARY = 600


def main() -> int:
    """Run the demo; returns the exit code of the process."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    out: Path = parser.parse_args().out
    started = time.monotonic()
    try:
        data, tokenizer, run = out / "data", out / "tokenizer", out / "pretrain"
        with _stage("scenes"):
            _draw_scenes(data)
        with _stage("tokenizer"):
            _train_tokenizer(data / "train", tokenizer)
        with _stage("pre-training"):
            paths = {
                "data.train.0.path": data / "train",
                "validation.path": data / "val",
                "data.tokenizer": tokenizer,
            }
            precision = _precision(run)
            _train("pretrain", "demo", run, paths | {"precision": precision})
        results = [*_evaluate(run, data, out), *_recognise(run, data / "labelled", out)]
        results += _fine_tune(run, data, tokenizer, precision, out)
        with _stage("export, loaded again without this project"):
            from pretrain.export import export

            export(run, out / "export", check=True)
        with _stage("report"):
            from eval.report import write_report

            facts = {"command": "make demo", "training": "accelerate launch -m pretrain demo.yaml"}
            report = write_report(
                results, out / "report.html", run=run, facts=facts, title="GLSCL demo"
            )
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; call again to go on", file=sys.stderr)
        return 130
    _summarise(out, report, time.monotonic() - started)
    return 0


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    print(f"== {name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"   {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _draw_scenes(data: Path) -> None:
    from data_pipeline.scenes.generate import generate

    generate(data, train=TRAIN, val=VALIDATION, test=TEST, novel=NOVEL, labelled=True)
    generate(data / "clips", train=TRAIN_CLIPS, val=0, test=TEST_CLIPS, novel=0, video=True)


def _train_tokenizer(train: Path, out: Path) -> None:
    from data_pipeline.text import train_tokenizer

    if not (out / "tokenizer_config.json").is_file():
        train_tokenizer([train], out, VOCABULARY)


def _train(module: str, recipe: str, run: Path, changes: dict[str, Any]) -> None:
    """Train under `accelerate launch`, in a process of its own; an interrupted run goes on where it stopped."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(
            "--num_processes",
            "1",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
        ),
        *("--num_cpu_threads_per_process", str(usable_cores())),  # accelerate's default is one
        *("-m", module, str(RECIPES / f"{recipe}.yaml"), "--run", str(run)),
        *(word for key, value in changes.items() for word in (f"--{key}", str(value))),
    ]
    (run / "status.json").unlink(
        missing_ok=True
    )  # of an earlier call; what is there afterwards is about this one
    code = _wait(
        subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
    )
    if (run / "lock").is_file():
        with (run / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a worker outlives its launcher until it has saved
    _check_status(run, code)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the launcher. Ctrl-C reaches it by itself, SIGTERM is passed on; either way its worker saves."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_status(run: Path, code: int) -> None:
    """Raise the error that a run ended with: launchers hide a worker's exit code, its status file does not."""
    status = run / "status.json"
    if not status.is_file():
        raise UsageError(
            f"{run.name} did not start (its launcher ended with {code}); its message stands above"
        )
    state = json.loads(status.read_text())
    if state["state"] == "complete":
        return
    kind = getattr(errors, state["reason"].split(":")[0], IncompleteError)
    reason = state["reason"] or "it was killed"
    raise kind(
        f"{run.name} is {state['state']} at step {state['step']}: {reason}; call again to go on"
    )


def _precision(run: Path) -> str:
    """Precision of the run that exists, else the faster one on this machine."""
    import yaml

    if (run / "config.yaml").is_file():
        return str(yaml.safe_load((run / "config.yaml").read_text())["precision"])
    import torch

    left, right = torch.randn(2048, 256), torch.randn(256, 1024)

    def seconds(dtype: torch.dtype) -> float:
        a, b = left.to(dtype), right.to(dtype)
        return min(_timed(lambda: a @ b) for _ in range(5))

    single, half = seconds(torch.float32), seconds(torch.bfloat16)
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
    """Measure what needs no further training; returns the results' folders."""
    from eval.stages import align, baseline, preference, retrieval, zero_shot

    test, cache = data / "test", out / "features"
    with _stage("retrieval over the test gallery"):
        retrieval.evaluate(run, test, out / "retrieval", cache=cache)
    with _stage("true against swapped captions"):
        preference.evaluate(run, test, out / "preference", cache=cache)
    with _stage("baseline without a model, and the ceiling"):
        baseline.evaluate(data / "train", test, out / "baseline")
    with _stage("zero-shot classification"):
        zero_shot.evaluate(run, test, out / "zero-shot", cache=cache)
    with _stage("alignment of words and regions"):
        align.evaluate(run, test, out / "align", cache=cache)
    return [out / name for name in ("retrieval", "preference", "baseline", "zero-shot", "align")]


def _recognise(run: Path, labelled: Path, out: Path) -> list[Path]:
    """Recognise classes that no training picture shows, from a few pictures; returns the results' folders.

    Fewer episodes, draws and steps than the commands' own, which take minutes each.
    """
    import torch

    from eval.stages import few_shot, metric_learning, multi_label

    novel, base, val = (labelled / name for name in ("novel", "base", "val"))
    cache = out / "features"
    with _stage("classes from a few pictures"):
        few_shot.evaluate(
            run, novel, out / "few-shot", base=base, val=val, episodes=200, epochs=2, cache=cache
        )
    with _stage("several labels from a few pictures"):
        multi_label.evaluate(
            run, novel, out / "multi-label", base=base, val=val, draws=5, epochs=4, cache=cache
        )
    with _stage("nearest neighbours of unseen classes"):
        threads = torch.get_num_threads()
        torch.set_num_threads(
            1
        )  # its tensors are small: a second thread costs two thirds more time than none
        metric_learning.evaluate(
            run,
            novel,
            out / "metric-learning",
            base=base,
            steps=60,
            seeds=(0, 1),
            folds=2,
            cache=cache,
        )
        torch.set_num_threads(threads)
    return [out / name for name in ("few-shot", "multi-label", "metric-learning")]


def _fine_tune(run: Path, data: Path, tokenizer: Path, precision: str, out: Path) -> list[Path]:
    """Fine-tune for questions, statements and clips, and measure each; returns the results' folders."""
    from eval.stages import nlvr2, video_retrieval, vqa, vqa_prior

    shared = {"init_from": run, "data.tokenizer": tokenizer, "precision": precision}
    with _stage("fine-tuning: questions"):
        paths = {"data.train.0.path": data / "train", "validation.path": data / "val"}
        _train("eval.finetune", "demo_vqa", out / "finetune-vqa", shared | paths)
    with _stage("questions, with and without the picture"):
        vqa_prior.evaluate(data / "train", data / "test", out / "vqa-prior")
        vqa.evaluate(out / "finetune-vqa", data / "test", out / "vqa", prior=out / "vqa-prior")
    with _stage("fine-tuning: statements on two pictures"):
        paths = {
            "data.train.0.path": data / "pairs" / "train",
            "validation.path": data / "pairs" / "val",
        }
        # Of so short a pre-training fusion has learnt little; the questions have taught it more.
        start = {"init_from": out / "finetune-vqa"}
        _train("eval.finetune", "demo_nlvr2", out / "finetune-nlvr2", shared | paths | start)
    with _stage("statements"):
        nlvr2.evaluate(out / "finetune-nlvr2", data / "pairs" / "test", out / "nlvr2")
    with _stage("fine-tuning: clips"):
        _train(
            "eval.finetune",
            "demo_video",
            out / "finetune-video",
            shared | {"data.video.train.0.path": data / "clips" / "train"},
        )
    with _stage("retrieval of clips"):
        video_retrieval.evaluate(
            out / "finetune-video", data / "clips" / "test", out / "video-retrieval", frames=3
        )
    return [out / name for name in ("vqa", "vqa-prior", "nlvr2", "video-retrieval")]


def _summarise(out: Path, report: Path, seconds: float) -> None:
    from eval.results.schema import read_result

    def of(stage: str) -> dict[str, Any]:
        return {metric.name: metric for metric in read_result(out / stage).metrics}

    retrieval, baseline, video = of("retrieval"), of("baseline"), of("video-retrieval")
    recall, ceiling = retrieval["text_to_image/R@1"], baseline["ceiling/text_to_image/R@1"]
    steps = json.loads((out / "pretrain" / "status.json").read_text())["step"]
    vqa, nlvr2, align = of("vqa"), of("nlvr2"), of("align")
    classes, labels, neighbours = of("few-shot"), of("multi-label"), of("metric-learning")
    lines = [
        f"trained {steps} steps under accelerate launch; everything took {seconds / 60:.1f} minutes",
        f"text-to-image R@1 over {TEST} test pictures: {_interval(recall)}; re-ranked: "
        f"{_interval(retrieval['text_to_image/reranked/R@1'])}",
        f"that is {100 * recall.value / ceiling.value:.0f} % of the ceiling {ceiling.value:.1f} (captions that fit "
        f"several pictures), the baseline without a model reaches {baseline['text_to_image/R@1'].value:.1f}, "
        f"chance {recall.chance:.1f}",
        f"matching prefers the true caption over a swapped one in {_interval(of('preference')['matching/accuracy'])} "
        "of pairs (chance 50)",
        f"zero-shot classification: {_interval(of('zero-shot')['top1'])}",
        f"five new classes from one picture of each: GLIML {_interval(classes['5way-1shot/gliml/accuracy'])}, "
        f"ProtoNet {_interval(classes['5way-1shot/proto/accuracy'])}, from their names alone "
        f"{_interval(classes['5way-1shot/zero_shot/accuracy'])}",
        f"several new labels from one picture of each: mAP {_interval(labels['1shot/lcm/mAP'])} by loss change, "
        f"{_interval(labels['1shot/cross/mAP'])} by cross-interaction, "
        f"{_interval(labels['1shot/zero_shot/mAP'])} from their names alone",
        f"nearest neighbour of a new class: {_interval(neighbours['gdfl/recall@1'])} trained, "
        f"{_interval(neighbours['frozen_cls/recall@1'])} with the tower as it is",
        f"questions, fine-tuned: {_interval(vqa['accuracy'])}; without the picture {_interval(vqa['prior/accuracy'])}, "
        f"a difference of {_interval(vqa['above_prior/accuracy'], 'points')}",
        f"statements on two pictures, fine-tuned: {_interval(nlvr2['accuracy'])} (chance 50)",
        f"clips, fine-tuned: text-to-video R@1 {_interval(video['text_to_video/R@1'])} over {TEST_CLIPS}",
        f"words look at their regions: {_interval(align['local/pixel/mass'])} of attention inside, "
        f"{_interval(align['local/pixel/mass_over_uniform'], 'points')} more than uniform attention",
        f"look at {report}; encoders for transformers in {out / 'export'}; the runs in {out}",
    ]
    print("\n".join(lines))


def _interval(metric: Any, unit: str = "%") -> str:
    return f"{metric.value:.1f} {unit} [{metric.ci95[0]:.1f}, {metric.ci95[1]:.1f}]"


if __name__ == "__main__":
    sys.exit(main())

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

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
TRAIN, VALIDATION, TEST, NOVEL = 12_000, 500, 500, 500
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
            _pretrain(data, tokenizer, run)
        results = [out / "retrieval", out / "preference", out / "baseline"]
        _evaluate(run, data, *results)
        with _stage("export, loaded again without this project"):
            from pretrain.export import export

            export(run, out / "export", check=True)
        with _stage("report"):
            from eval.report import write_report

            facts = {"command": "make demo", "training": f"accelerate launch -m pretrain {RECIPE.name}"}
            report = write_report(results, out / "report.html", run=run, facts=facts, title="GLSCL demo")
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; call again to go on", file=sys.stderr)
        return 130
    _summarise(results, run, out / "export", report, time.monotonic() - started)
    return 0


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    print(f"== {name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"   {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _draw_scenes(data: Path) -> None:
    from data_pipeline.scenes.generate import generate

    generate(data, train=TRAIN, val=VALIDATION, test=TEST, novel=NOVEL)


def _train_tokenizer(train: Path, out: Path) -> None:
    from data_pipeline.text import train_tokenizer

    if not (out / "tokenizer_config.json").is_file():
        train_tokenizer([train], out, VOCABULARY)


def _pretrain(data: Path, tokenizer: Path, run: Path) -> None:
    """Train under `accelerate launch`, in a process of its own; an interrupted run goes on where it stopped."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", str(usable_cores())),  # accelerate's default is one
        *("-m", "pretrain", str(RECIPE), "--run", str(run), "--precision", _precision(run)),
        *("--data.train.0.path", str(data / "train"), "--data.tokenizer", str(tokenizer)),
        *("--validation.path", str(data / "val")),
    ]
    (run / "status.json").unlink(missing_ok=True)  # of an earlier call; what is there afterwards is about this one
    code = _wait(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}))
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
        raise UsageError(f"pre-training did not start (its launcher ended with {code}); its message stands above")
    state = json.loads(status.read_text())
    if state["state"] == "complete":
        return
    kind = getattr(errors, state["reason"].split(":")[0], IncompleteError)
    reason = state["reason"] or "it was killed"
    raise kind(f"pre-training is {state['state']} at step {state['step']}: {reason}; call again to go on")


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
    print(f"   bf16 products take {half / single:.2f} times as long as fp32 here: {chosen}", file=sys.stderr)
    return chosen


def _timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _evaluate(run: Path, data: Path, retrieval_out: Path, preference_out: Path, baseline_out: Path) -> None:
    from eval import baselines
    from eval.stages import preference, retrieval

    with _stage("retrieval over the test gallery"):
        retrieval.evaluate(run, data / "test", retrieval_out)
    with _stage("true against swapped captions"):
        preference.evaluate(run, data / "test", preference_out)
    with _stage("baseline without a model, and the ceiling"):
        baselines.evaluate(data / "train", data / "test", baseline_out)


def _summarise(results: list[Path], run: Path, export: Path, report: Path, seconds: float) -> None:
    from eval.schema import read_result

    retrieval, preference, baseline = ({m.name: m for m in read_result(folder).metrics} for folder in results)
    recall, reranked = retrieval["text_to_image/R@1"], retrieval["text_to_image/reranked/R@1"]
    ceiling, plain = baseline["ceiling/text_to_image/R@1"], baseline["text_to_image/R@1"]
    prefers = preference["matching/accuracy"]
    steps = json.loads((run / "status.json").read_text())["step"]
    lines = [
        f"trained {steps} steps under accelerate launch; everything took {seconds / 60:.1f} minutes",
        f"text-to-image R@1 over {TEST} test pictures: {_interval(recall)}; re-ranked: {_interval(reranked)}",
        f"that is {100 * recall.value / ceiling.value:.0f} % of the ceiling {ceiling.value:.1f} (captions that fit "
        f"several pictures), the baseline without a model reaches {plain.value:.1f}, "
        f"chance {recall.chance:.1f}",
        f"matching prefers the true caption over a swapped one in {_interval(prefers)} of pairs (chance 50)",
        f"look at {report}; encoders for transformers in {export}; the run in {run}",
    ]
    print("\n".join(lines))


def _interval(metric: Any) -> str:
    return f"{metric.value:.1f} % [{metric.ci95[0]:.1f}, {metric.ci95[1]:.1f}]"


if __name__ == "__main__":
    sys.exit(main())

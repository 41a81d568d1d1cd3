"""Several processes over gloo: the same samples, and the same weights after any interruption.

Tests that are not slow fork their ranks; the slow ones start them with accelerate, as users do.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
import yaml

from data_pipeline.errors import UsageError
from pretrain.__main__ import main
from pretrain.parallel import ENGINES
from pretrain.parallel.selfcheck import check_devices, check_samples, start
from tests.pretrain.runs import (
    assert_same_run,
    environment_without_ranks,
    rows,
    status,
    weights,
)
from tests.ranks import Started, run_ranks

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def environment() -> dict[str, str]:
    return environment_without_ranks() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def several(world: int) -> list[str]:
    config = ROOT / "launch" / "accelerate" / "ddp.yaml"
    return [
        *LAUNCH,
        "--config_file",
        str(config),
        "--num_processes",
        str(world),
        "--main_process_port",
        "0",
    ]


def one() -> list[str]:
    return [
        *LAUNCH,
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]


def write(settings: dict, path: Path) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def run(
    command: list[str], settings: dict, folder: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "-m", "pretrain", write(settings, folder / "config.yaml"), *more],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_images_and_videos_train_together_on_two_ranks_for_50_steps(settings, tmp_path, clips):
    settings |= {"steps": 50, "batch": {"image": 8, "video": 4}, "micro_batches": 1, "world": 2}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}
    finished = run(several(2), settings, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "8 images and 4 videos a step" in finished.stderr
    logged = rows(Path(settings["run"]))
    assert [row["step"] for row in logged] == list(range(1, 51))
    for row in logged:
        for name in ("contrastive", "matching", "global_image", "local_image"):
            weighted = (8 * row[f"loss/image/{name}"] + 4 * row[f"loss/video/{name}"]) / 12
            assert row[f"loss/{name}"] == pytest.approx(weighted, rel=1e-5)
    for kind in ("image", "video"):
        totals = [row[f"loss/{kind}/total"] for row in logged]
        assert mean(totals[-10:]) < mean(totals[:10])


@pytest.mark.slow
def test_two_ranks_read_the_samples_of_one_process_and_learn_the_same(settings, tmp_path, scenes):
    # Dropout is drawn per rank.
    settings["model"]["text"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["model"]["fusion"] |= {"fusion_dropout": 0.0}
    # Clipping and AdamW turn rounding errors into whole steps; a small learning rate keeps them
    # small.
    settings["optimizer"] |= {"lr": 1e-5, "max_grad_norm": None}
    settings["validation"] = {"path": str(scenes / "val"), "every": 3, "batch_size": 4}
    settings["data"]["workers"] = 1
    for world, start_message in ((1, "1 process on cpu"), (2, "2 processes on cpu")):
        folder = tmp_path / str(world)
        folder.mkdir()
        values = settings | {"run": str(folder / "run"), "world": world}
        rank_0, *_ = run_ranks(world, main, [write(values, folder / "config.yaml")])
        assert start_message in rank_0.stderr
    alone, together = rows(tmp_path / "1" / "run"), rows(tmp_path / "2" / "run")
    assert [row["keys"] for row in alone] == [row["keys"] for row in together]
    for one_row, two_row in zip(alone, together, strict=True):
        assert two_row["loss"] == pytest.approx(one_row["loss"], rel=1e-4)
        for name in one_row:
            if name.startswith("validation/"):
                # One of 14 images more or less: rounding may change the order of close scores.
                assert two_row[name] == pytest.approx(one_row[name], abs=8)
    first, second = weights(tmp_path / "1" / "run"), weights(tmp_path / "2" / "run")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 2e-4


@pytest.mark.slow
def test_resume_on_four_ranks_is_bitwise(settings, tmp_path):
    settings |= {"batch": {"image": 32}, "steps": 16}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert run(several(4), settings | {"run": str(whole / "run")}, whole).returncode == 0
    start_and_stop(several(4), settings | {"run": str(parts / "run")}, parts, signal.SIGKILL, 3)
    assert status(parts / "run")["state"] == "running"
    assert run(several(4), settings | {"run": str(parts / "run")}, parts).returncode == 0
    assert_same_run(whole / "run", parts / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(settings, tmp_path, number):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    settings |= {"steps": 25, "checkpoint": {"every": 3, "keep": 2}}
    assert run(one(), settings | {"run": str(whole / "run")}, whole).returncode == 0
    start_and_stop(one(), settings | {"run": str(parts / "run")}, parts, number, 5)
    assert status(parts / "run")["state"] == (
        "preempted" if number == signal.SIGTERM else "running"
    )
    assert status(parts / "run")["step"] < 25
    again = run(one(), settings | {"run": str(parts / "run")}, parts)
    assert again.returncode == 0, again.stderr[-2000:]
    assert_same_run(whole / "run", parts / "run")


def start_and_stop(
    command: list[str], settings: dict, folder: Path, number: int, after: int
) -> int:
    """Start a run, and signal its launcher once `after` steps are logged; returns its exit code.

    SIGKILL goes to everything that the launcher started as well.
    """
    process = subprocess.Popen(
        [*command, "-m", "pretrain", write(settings, folder / "config.yaml")],
        cwd=folder,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics, deadline = Path(settings["run"]) / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= after):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGKILL:
        # torchrun's workers lead sessions of their own, so that no group signal reaches them.
        for worker in workers_of(process.pid):
            os.kill(worker, number)
        process.kill()
    else:
        process.send_signal(number)  # to the launcher only, as a scheduler would
    code = process.wait(timeout=60)
    # A worker outlives its launcher until it has finished its step.
    while is_locked(Path(settings["run"])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return code


def workers_of(launcher: int) -> list[int]:
    """Ask the kernel for the process ids of what the launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def is_locked(folder: Path) -> bool:
    import fcntl

    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_second_job_in_the_same_run_folder_is_refused_by_name(settings, tmp_path, capsys):
    settings |= {"steps": 2000}
    first = Started(main, [write(settings, tmp_path / "a.yaml")])
    try:
        deadline = time.monotonic() + 60
        while not (Path(settings["run"]) / "metrics.jsonl").is_file():
            assert first.process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        assert main([write(settings, tmp_path / "config.yaml")]) == 2
        assert f"is in use by process {first.process.pid}" in capsys.readouterr().err
    finally:
        first.process.terminate()
        assert first.wait(timeout=60).exit_code == 75


# Without CUDA, accelerate starts two processes from this that do not see each other.
LONELY = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": True,
    "num_processes": 2,
    "num_machines": 1,
    "machine_rank": 0,
    "mixed_precision": "no",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--cpu --num_processes 2", "MULTI_CPU yaml"])
def test_launches_that_silently_start_one_process_are_refused(settings, tmp_path, way):
    if way == "MULTI_CPU yaml":
        path = write(LONELY | {"distributed_type": "MULTI_CPU"}, tmp_path / "accelerate.yaml")
        command = [*LAUNCH, "--config_file", path]
    else:
        command = [*LAUNCH, "--cpu", "--num_processes", "2"]
    finished = run(command, settings | {"world": 2}, tmp_path)
    assert finished.returncode != 0
    assert "the configuration says world: 2, but 1 train" in finished.stderr
    assert not (Path(settings["run"]) / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_plain_multi_process_configuration_gives_real_ranks_without_cuda(settings, tmp_path):
    path = write(LONELY, tmp_path / "accelerate.yaml")
    finished = run(
        [*LAUNCH, "--config_file", path, "--main_process_port", "0"],
        settings | {"world": 2, "steps": 1},
        tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "2 processes on cpu" in finished.stderr


def test_ranks_that_share_a_device_or_samples_are_named():
    check_devices([1, 2, 3])
    check_samples([5, 6, 7])
    with pytest.raises(UsageError, match="ranks 0 and 2 share a GPU: start one process per GPU"):
        check_devices([1, 2, 1])
    with pytest.raises(UsageError, match="ranks 1 and 2 read the same samples: accelerate launch"):
        check_samples([5, 6, 6])


def test_ranks_that_do_not_see_each_other_refuse_to_train(monkeypatch):
    start("fp32", (), ".", None)  # this process is alone, ...
    monkeypatch.setenv("WORLD_SIZE", "2")  # ... though its launcher started two
    message = r"2 processes were launched but this one sees 1.*--num_processes 2"
    with pytest.raises(UsageError, match=message):
        start("fp32", (), ".", None)


def test_an_added_engine_trains_where_the_launcher_requests_it(monkeypatch):
    monkeypatch.setitem(ENGINES, "toy", "tests.pretrain.toy_engine.Toy")
    assert start("fp32", (), ".", None).name == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_TOY", "true")
    assert start("fp32", (), ".", None).name == "toy"


def test_a_process_that_cannot_reach_the_others_says_so(settings, tmp_path):
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    finished = Started(main, [write(settings, tmp_path / "c.yaml")], environment=alone).wait()
    assert finished.exit_code == 2
    assert "cannot join the other processes" in finished.stderr

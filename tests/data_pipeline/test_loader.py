"""The loader: the same samples and bytes for any ranks, micro-batches, workers and first step."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.augment import write_evaluation_view
from data_pipeline.errors import DataError, IncompleteError, UsageError
from data_pipeline.loader import Loader, evaluation_batches, open_loader
from data_pipeline.masking import MaskingConfig
from data_pipeline.positions import planned_keys
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer
from tests.data_pipeline.batches import BATCH, OPTIONS, START, Row, joined_parts, read, rows
from tests.data_pipeline.conftest import encoded_image

SWITCHES = {
    "dataset_negatives": True,
    "local_negatives": 3,
    "masking": MaskingConfig(replacement=True, mlm_unit="token"),
    "group": 3,
}


@pytest.fixture(scope="module")
def reference(images, tokenizer) -> list[list[Row]]:
    """Steps START and START + 1 as one process reads them."""
    whole = read(images.root, tokenizer)
    return [whole[:BATCH], whole[BATCH:]]


def worker_processes(count: int) -> list[int]:
    """Process ids of this process's data workers, once there are `count` of them."""
    deadline = time.monotonic() + 10
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        workers = [child for child, line in lines.items() if b"data_pipeline.workers" in line]
        # A process that was just started has no command line for a moment.
        if len(workers) == count:
            return workers
        assert time.monotonic() < deadline, f"{len(workers)} workers instead of {count}"


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_ranks_and_micro_batches_do_not_change_the_global_batch(
    images, tokenizer, reference, world, micro_batches
):
    ranks = []
    for rank in range(world):
        ranks.append(
            read(images.root, tokenizer, world=world, rank=rank, micro_batches=micro_batches)
        )
    part = BATCH // world
    for step in range(2):
        assert joined_parts(ranks, step, part) == reference[step]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_workers_do_not_change_what_a_rank_reads(
    images, tokenizer, reference, world, micro_batches, workers
):
    rank, part = world - 1, BATCH // world
    rank_rows = read(
        images.root,
        tokenizer,
        world=world,
        rank=rank,
        micro_batches=micro_batches,
        workers=workers,
    )
    for step in range(2):
        assert (
            rank_rows[step * part : (step + 1) * part]
            == reference[step][rank * part : (rank + 1) * part]
        )


@pytest.mark.parametrize(("world", "micro_batches", "workers"), [(2, 2, 0), (4, 1, 0), (1, 2, 3)])
def test_options_do_not_depend_on_the_division_either(
    images, tokenizer, world, micro_batches, workers
):
    whole = read(images.root, tokenizer, **SWITCHES)
    options = {"world": world, "micro_batches": micro_batches, "workers": workers, **SWITCHES}
    ranks = [read(images.root, tokenizer, rank=rank, **options) for rank in range(world)]
    part = BATCH // world
    for step in range(2):
        expected = whole[step * BATCH : (step + 1) * BATCH]
        assert joined_parts(ranks, step, part) == expected
    assert any(row["mlm_positions"] == [] for row in whole)
    assert all(bool(row["negative"]) != bool(row["matching"]) for row in whole)
    for row in whole:
        assert len(row["negative_patches"]) == 3 >= len(row["negative_tokens"]) > 0


def test_negatives_and_their_choice_change_nothing_else(images, tokenizer):
    plain = read(images.root, tokenizer)
    more = read(images.root, tokenizer, dataset_negatives=True, local_negatives=2)
    new = ("negative", "negative_patches", "negative_tokens")
    for row in more + plain:
        for name in new:
            row.pop(name, None)
    assert more == plain


def flat_pictures(root: Path, count: int, bad: tuple[int, ...] = (), same: int = 1) -> Manifest:
    """Images of one gray each, which is their number; `same` in a row share an image_id.

    Some are unreadable.
    """
    records = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (4 * number,) * 3).save(buffer, "PNG")
        image = b"no picture" if number in bad else buffer.getvalue()
        members = {"png": image, "json": json.dumps({"image_id": number // same}).encode()}
        records.append((f"{number:05d}", members | {"txt": f"number {number}".encode()}))
    return write_shards(root, records, source={"name": "flat"})


def test_a_dataset_negative_never_shows_the_same_image_under_another_key(tokenizer, tmp_path):
    options = {**OPTIONS, "global_batch": 20, "dataset_negatives": True}
    with open_loader(
        [flat_pictures(tmp_path / "flat", 6, same=3).root], tokenizer=tokenizer, **options
    ) as loader:
        for _ in range(10):
            batch = next(loader)
            position = []
            for key, label in zip(batch.keys, batch.itm_labels, strict=True):
                if label == 0:
                    position.append(int(key[-5:]))
            grays = batch.negative_pixels[:, 0, 0, 0].tolist()
            for number, gray in zip(position, grays, strict=True):
                assert number // 3 != gray // 4 // 3
    alike = flat_pictures(tmp_path / "one", 6, same=6).root
    with (
        open_loader([alike], tokenizer=tokenizer, **options) as loader,
        pytest.raises(DataError, match="no negative in .* have its image_id '0'"),
    ):
        next(loader)


@pytest.mark.parametrize("count", [2, 10])
def test_a_dataset_negative_is_any_other_sample_but_never_the_sample_itself(
    tokenizer, tmp_path, count
):
    root = flat_pictures(tmp_path / "flat", count).root
    seen = np.zeros((count, count))
    options = {**OPTIONS, "global_batch": 20, "dataset_negatives": True}
    with open_loader([root], tokenizer=tokenizer, **options) as loader:
        for _ in range(30):
            batch = next(loader)
            assert batch.negative_pixels.shape == (10, 32, 32, 3)
            position = []
            for key, label in zip(batch.keys, batch.itm_labels, strict=True):
                if label == 0:
                    position.append(int(key[-5:]))
            np.add.at(seen, (position, batch.negative_pixels[:, 0, 0, 0].numpy() // 4), 1)
    assert np.diag(seen).sum() == 0
    assert (seen + np.eye(count) > 0).mean() > 0.9


def test_a_bad_negative_is_replaced_and_quarantined(tokenizer, tmp_path):
    root = flat_pictures(tmp_path / "flat", 10, bad=(3, 7)).root
    file = tmp_path / "quarantine.jsonl"
    options = {**OPTIONS, "global_batch": 4, "dataset_negatives": True, "max_bad_fraction": 1.0}
    with open_loader([root], tokenizer=tokenizer, quarantine=file, **options) as loader:
        batches = [next(loader) for _ in range(10)]
    shown = set()
    for batch in batches:
        for value in (batch.negative_pixels[:, 0, 0, 0] // 4).tolist():
            shown.add(value)
    assert shown and not shown & {3, 7}
    assert sorted(json.loads(line)["key"] for line in file.read_text().splitlines()) == [
        "00003",
        "00007",
    ]


def test_a_source_of_one_sample_has_no_negatives(tokenizer, tmp_path):
    root = flat_pictures(tmp_path / "flat", 1).root
    with pytest.raises(DataError, match="holds a single sample"):
        opened(root, tokenizer, dataset_negatives=True)
    with pytest.raises(UsageError, match="local_negatives must be at least 1"):
        opened(root, tokenizer, local_negatives=0)


def test_identities_agree_where_image_or_caption_are_the_same(tokenizer, tmp_path):
    names = [
        ("one", "a red star"),
        ("one", "a blue star"),
        ("two", "a red star"),
        ("\ud800", "a circle"),
    ]
    records = []
    for n, (image_id, text) in enumerate(names):
        content = json.dumps({"caption": text, "image_id": image_id}).encode()
        records.append((f"{n:05d}", {"jpg": encoded_image(n), "json": content}))
    roots = []
    for name in ("here", "there"):
        roots.append(write_shards(tmp_path / name, records, source={"name": name}).root)
    options = {**OPTIONS, "global_batch": 8, "lanes": 1, "weights": [1, 1]}
    positions: dict[str, list[int]] = {}
    with open_loader(roots, tokenizer=tokenizer, **options) as loader:
        for _ in range(4):
            batch = next(loader)
            assert batch.identity.dtype == torch.int64 and batch.identity.shape == (8, 2)
            positions.update(zip(batch.keys, batch.identity.tolist(), strict=True))
    identity = {(key.split("/")[0], int(key[-5:])): value for key, value in positions.items()}
    assert len(identity) == 8
    for (source, sample), (image, text) in identity.items():
        for (other_source, other), (other_image, other_text) in identity.items():
            assert (image == other_image) == (
                source == other_source and names[sample][0] == names[other][0]
            )
            assert (text == other_text) == (names[sample][1] == names[other][1])


def test_a_batch_holds_what_its_fields_promise(images, tokenizer):
    with open_loader([images.root], tokenizer=tokenizer, **{**OPTIONS, "group": 8}) as loader:
        batch = next(loader)
    longest = int(batch.text_mask.sum(1).max())
    assert batch.text_ids.shape[1] == min(50, -(-longest // 8) * 8)
    assert (batch.text_ids[batch.text_mask == 0] == tokenizer.pad_id).all()
    hidden = torch.zeros_like(batch.text_ids, dtype=torch.bool)
    hidden.view(-1)[batch.masked_tokens] = True
    assert (batch.masked_text_ids == torch.where(hidden, tokenizer.mask_id, batch.text_ids)).all()
    assert (batch.text_ids.view(-1)[batch.mlm_positions] == batch.mlm_labels).all()
    predicted = torch.zeros_like(hidden)
    predicted.view(-1)[batch.mlm_positions] = True
    assert (batch.mlm_ids[~predicted] == batch.text_ids[~predicted]).all()
    assert set((batch.mlm_positions // batch.text_ids.shape[1]).tolist()) == set(range(BATCH))
    assert batch.keep_patches.shape == (BATCH, 3) and batch.masked_patches.shape == (BATCH * 4,)
    assert batch.itm_labels.view(6, 8).sum(1).tolist() == [4] * 6
    assert batch.itm_noise.shape == (BATCH, 8) and batch.itm_noise.dtype == torch.float32
    for name in ("text_ids", "text_mask", "mlm_ids", "itm_labels"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.pixels.dtype == torch.uint8 and batch.to("cpu").keys == batch.keys


def test_long_texts_may_be_cut_to_a_length_that_is_not_a_multiple_of_eight(images, tokenizer):
    with open_loader([images.root], tokenizer=tokenizer, max_text_length=13, **OPTIONS) as loader:
        batch = next(loader)
    assert batch.text_ids.shape == (BATCH, 13)
    ends = batch.text_ids[torch.arange(BATCH), batch.text_mask.sum(1) - 1]
    assert (ends == tokenizer.sep_id).all()


def test_a_sample_looks_different_in_another_epoch_and_under_another_seed(images, tokenizer):
    def look(row: Row) -> tuple[object, ...]:
        parts = ("pixels", "keep", "masked_patches", "masked_tokens")
        return tuple(str(row[name]) for name in parts)

    looks: dict[object, list[tuple[object, ...]]] = {}
    for row in read(images.root, tokenizer, steps=12) + read(images.root, tokenizer, seed=2):
        looks.setdefault(row["key"], []).append(look(row))
    assert len(looks) == images.samples
    assert all(len(set(seen)) == len(seen) >= 2 for seen in looks.values())


def test_planned_keys_are_what_the_loader_reads(images, write_images, tokenizer, tmp_path):
    other = write_images(tmp_path, 40, name="other")
    dirs, common = (
        [images.root, other.root],
        {"seed": 4, "global_batch": BATCH, "weights": [0.7, 0.3]},
    )
    plan = []
    for rank in range(2):
        plan.append(list(planned_keys(dirs, world=2, rank=rank, start_step=3, steps=2, **common)))
    options = {
        **OPTIONS,
        **common,
        "tokenizer": tokenizer,
        "world": 2,
        "micro_batches": 2,
        "start_step": 3,
    }
    for rank in range(2):
        with open_loader(dirs, rank=rank, **options) as loader:
            for step in (3, 4):
                keys = next(loader).keys + next(loader).keys
                assert plan[rank][step - 3] == {"step": step, "keys": keys}
                assert (
                    loader.step_keys(step) == plan[0][step - 3]["keys"] + plan[1][step - 3]["keys"]
                )


def opened(root: Path, tokenizer: Tokenizer, **options: object) -> Loader:
    return open_loader([root], tokenizer=tokenizer, **{**OPTIONS, **options})


def test_a_state_fits_every_division_of_the_same_run(images, tokenizer):
    state = opened(images.root, tokenizer).state(7)
    assert state["draw"] == 7 * BATCH and len(state["next"]) == 8
    opened(images.root, tokenizer, world=3, rank=1, micro_batches=2).check_state(state)
    opened(images.root, tokenizer, global_batch=112, lanes=16).check_state(state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed"),
        ({"lanes": 4}, "lanes"),
        ({"group": 4}, "groups"),
        ({"global_batch": 80, "lanes": 16}, "not a step boundary"),
    ],
)
def test_a_state_of_another_run_is_refused(images, tokenizer, change, named):
    state = opened(images.root, tokenizer).state(7)
    with pytest.raises(DataError, match=named):
        opened(images.root, tokenizer, **change).check_state(state)


def test_a_state_of_other_data_is_refused(images, write_images, tokenizer, tmp_path):
    state = opened(images.root, tokenizer).state(7)
    with pytest.raises(DataError, match="data sets"):
        opened(write_images(tmp_path, 261).root, tokenizer).check_state(state)
    with pytest.raises(DataError, match="next samples"):
        opened(images.root, tokenizer).check_state(state | {"next": []})


def test_a_state_of_another_tokenizer_is_refused(images, tokenizer, tmp_path):
    state = opened(images.root, tokenizer).state(7)
    other = Tokenizer.train(["another text", "yet another text"], 290)
    with pytest.raises(DataError, match="contents of the tokenizer"):
        opened(images.root, other).check_state(state)
    tokenizer.encode(["a used tokenizer is the same"], 12)
    tokenizer.save(tmp_path)
    for same in (tokenizer, tmp_path):
        opened(images.root, same).check_state(state)


def test_two_data_sets_of_one_name_are_refused(images, write_images, tokenizer, tmp_path):
    other = write_images(tmp_path / "other", 60)
    with pytest.raises(
        UsageError, match=f'{images.root} and {other.root} .*"images".* --name NAME'
    ):
        open_loader([images.root, other.root], tokenizer=tokenizer, **OPTIONS)
    with open_loader([images.root, images.root], tokenizer=tokenizer, **OPTIONS) as loader:
        assert next(loader).keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 5}, "cannot be divided over 5 ranks x 1 micro-batches: choose a multiple of 5"),
        ({"world": 4, "micro_batches": 5}, "choose a multiple of 20"),
        ({"rank": 1}, "on rank 1 of 1 ranks"),
        ({"lanes": 0}, "lanes must be at least 1, not 0"),
        ({"group": 0}, "groups of 0 samples"),
        ({"group": None, "global_batch": 20, "world": 4}, "groups of 2 .* set another group"),
        ({"lanes": 7}, "7 lanes do not divide the global batch of 48"),
        ({"group": 5}, "groups of 5 .* set another group"),
        ({"group": None, "world": 48}, "divide the micro-batch of 1 "),
        ({"patch_size": 7}, "patches of 7 pixels"),
        ({"weights": [1, 2]}, "1 data sets need as many weights"),
    ],
)
def test_impossible_divisions_are_refused(images, tokenizer, change, message):
    with pytest.raises(UsageError, match=message):
        opened(images.root, tokenizer, **change)


@pytest.mark.parametrize(("batch", "group"), [(24, 2), (64, 2), (20, 2), (9, 3), (7, 7)])
def test_matching_groups_of_plain_calls_do_not_depend_on_the_division(
    images, tokenizer, batch, group
):
    options = {"group": None, "global_batch": batch}
    for world in [n for n in range(1, batch) if batch % n == 0 and batch // n % group == 0]:
        with opened(images.root, tokenizer, world=world, **options) as loader:
            assert loader.state(0)["group"] == group
            assert next(loader).itm_noise.shape == (batch // world, group)


def test_missing_and_cut_data_are_named_at_the_start(images, write_images, tokenizer, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        opened(tmp_path / "nowhere", tokenizer)
    cut = write_images(tmp_path / "cut", 120)
    os.truncate(cut.shard_path(1), 5000)
    with pytest.raises(DataError, match=r"shard-000001.tar.*found 5,000"):
        opened(cut.root, tokenizer)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_ends_the_run_with_its_name(
    write_images, tokenizer, tmp_path, workers
):
    data = write_images(tmp_path / "data", 120)
    with opened(data.root, tokenizer, workers=workers) as loader:
        next(loader)
        for number in range(2):
            data.shard_path(number).write_bytes(b"")
        with pytest.raises(DataError, match=r"shard.*shard-00000\d.tar"):
            for _ in range(8):
                next(loader)


def test_a_killed_worker_is_restarted_where_it_was(images, tokenizer, capfd):
    expected = read(images.root, tokenizer, steps=13)
    with opened(images.root, tokenizer, start_step=START, workers=2) as loader:
        got = list(rows(next(loader)))
        for _ in range(2):
            os.kill(worker_processes(2)[0], signal.SIGKILL)
            # Each worker has two answers under way: at its third turn it is found dead.
            for _ in range(6):
                got += rows(next(loader))
    assert got == expected
    assert "died (exit code -9): restarting it at micro-batch" in capfd.readouterr().err


def test_a_worker_that_cannot_start_ends_the_run(images, tokenizer, monkeypatch):
    monkeypatch.setattr("data_pipeline.workers._ENTRY", "raise SystemExit(7)")
    with (
        opened(images.root, tokenizer, workers=1) as loader,
        pytest.raises(IncompleteError, match="exit code 7"),
    ):
        next(loader)


def test_workers_leave_signals_to_the_parent(images, tokenizer, capfd):
    with opened(images.root, tokenizer, workers=2) as loader:
        workers = worker_processes(2)
        for worker in workers:
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
        for _ in range(5):
            next(loader)
        assert worker_processes(2) == workers
    assert capfd.readouterr().err == ""
    assert worker_processes(0) == []


def test_workers_import_neither_torch_nor_transformers(images, tokenizer):
    with opened(images.root, tokenizer, workers=1) as loader:
        next(loader)
        loaded = Path(f"/proc/{worker_processes(1)[0]}/maps").read_text()
    assert "cv2" in loaded and "libtorch" not in loaded
    code = (
        "import sys, data_pipeline.workers; "
        "print(sorted({'torch', 'transformers', 'webdataset'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


PARENT = """
import os, signal, sys
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
folder, tokenizer = sys.argv[1:]
loader = open_loader([folder], tokenizer=tokenizer, workers=2, seed=0, global_batch=24, size=32)
next(loader)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_parent_is_killed(images, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    run = [sys.executable, "-c", PARENT, str(images.root), str(tmp_path)]
    started = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # The workers hold the same standard error, so that it ends with the last of them.
    output, errors = started.communicate(timeout=30)
    assert (started.returncode, output, errors) == (-signal.SIGKILL, b"ready\n", b"")


def test_pixels_cross_in_memory_without_a_name(images, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with opened(images.root, tokenizer, workers=2) as loader:
        for _ in range(2):  # one from each worker
            next(loader)
        mapped = []
        for process in (os.getpid(), *worker_processes(2)):
            mapped.append(Path(f"/proc/{process}/maps").read_text())
        assert all("/memfd:glscl-pixels (deleted)" in maps for maps in mapped)
        assert not any("/dev/shm" in maps for maps in mapped[1:])
        assert list(tmp_path.iterdir()) == []
    assert "glscl-pixels" not in Path("/proc/self/maps").read_text()


def test_batches_own_their_pixels(images, tokenizer):
    with opened(images.root, tokenizer, workers=1) as loader:
        batches = [next(loader) for _ in range(4)]
    again = read(images.root, tokenizer, steps=1)  # far from these steps, in another arena
    assert again
    with opened(images.root, tokenizer) as loader:
        assert all((batch.pixels == next(loader).pixels).all() for batch in batches)


@pytest.mark.parametrize(("world", "limit"), [(1, None), (3, None), (3, 17)])
def test_an_evaluation_reads_every_sample_once_in_order(images, world, limit):
    total = limit or images.samples
    seen = []
    for rank in range(world):
        batches = list(
            evaluation_batches(images, size=32, batch_size=50, rank=rank, world=world, limit=limit)
        )
        indices = []
        for batch in batches:
            for index in batch.indices:
                indices.append(index)
        assert indices == list(range(rank, total, world))
        samples = sum((batch.samples for batch in batches), [])
        keys = [sample.key for sample in samples]
        assert keys == [f"images/shard-{n // 100:06d}.tar/{n:05d}" for n in indices]
        seen += indices
    assert sorted(seen) == list(range(total))


def test_an_evaluation_squashes_images_and_skips_none(images, write_images, tmp_path):
    batch = next(evaluation_batches(images, size=32, batch_size=3))
    expected = np.empty((32, 32, 3), dtype=np.uint8)
    write_evaluation_view(batch.samples[2].media, expected)
    assert (batch.pixels[2].numpy() == expected).all()
    broken = write_images(tmp_path, 10, spoiled={4: {"jpg": b"\xff\xd8", "txt": b"a star"}})
    with pytest.raises(DataError, match="sample images/shard-000000.tar/00004 cannot be evaluated"):
        list(evaluation_batches(broken, size=32, batch_size=8))


def test_an_evaluation_that_stops_early_closes_its_shards(images):
    before = len(os.listdir("/proc/self/fd"))
    batches = evaluation_batches(images, size=32, batch_size=3)
    next(batches)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    batches.close()
    assert len(os.listdir("/proc/self/fd")) == before

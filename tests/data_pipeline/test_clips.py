"""Clips through the loader: frames, one crop for all of them, any division, and bad clips."""

from __future__ import annotations

import io
import json

import av
import numpy as np
import pytest
import torch

from data_pipeline.augment import AugmentConfig, write_training_clip
from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import evaluation_batches, open_loader
from data_pipeline.sample import BadSample
from data_pipeline.shards.manifest import index
from data_pipeline.shards.store import Store
from data_pipeline.shards.verify import verify
from data_pipeline.shards.write import write_shards
from tests.data_pipeline.batches import OPTIONS, START, joined_parts, read
from tests.data_pipeline.conftest import encoded_clip, encoded_image, frame_of, number_of

CLIPS = {"frames": 4, "global_batch": 12, "dataset_negatives": True, "local_negatives": 3}


@pytest.fixture(scope="module")
def reference(clips, tokenizer):
    """Return three steps from START as one process reads them."""
    return read(clips.root, tokenizer, steps=3, **CLIPS)


def test_a_batch_of_clips_holds_tubes(clips, tokenizer):
    with open_loader([clips.root], tokenizer=tokenizer, **{**OPTIONS, **CLIPS}) as loader:
        batch = next(loader)
    assert batch.kind == "video"
    assert batch.pixels.shape == (12, 4, 32, 32, 3) and batch.pixels.dtype == torch.uint8
    assert batch.negative_pixels.shape == (6, 4, 32, 32, 3)
    assert batch.keep_patches.shape == (12, 3) and batch.masked_patches.shape == (12 * 4,)
    assert int(batch.keep_patches.max()) < 16 and int(batch.masked_patches.max()) < 12 * 16
    for key, clip in zip(batch.keys, batch.pixels.numpy(), strict=True):
        frames = [frame_of(frame) for frame in clip]
        assert [number // 3 for number in frames] == [0, 1, 2, 3]
        assert {number_of(frame) for frame in clip} == {int(key[-5:]) % 12}


@pytest.mark.parametrize(
    ("world", "micro_batches", "workers"), [(1, 2, 0), (2, 1, 0), (3, 2, 0), (1, 1, 2), (2, 3, 1)]
)
def test_ranks_micro_batches_and_workers_do_not_change_clips(
    clips, tokenizer, reference, world, micro_batches, workers
):
    options = {"world": world, "micro_batches": micro_batches, "workers": workers, **CLIPS}
    ranks = [read(clips.root, tokenizer, steps=3, rank=rank, **options) for rank in range(world)]
    part = 12 // world
    for step in range(3):
        expected = reference[step * 12 : (step + 1) * 12]
        assert joined_parts(ranks, step, part) == expected


@pytest.mark.parametrize("step", [1, 2])
def test_any_step_can_be_the_first(clips, tokenizer, reference, step):
    options = {**OPTIONS, **CLIPS, "start_step": START + step}
    with open_loader([clips.root], tokenizer=tokenizer, **options) as loader:
        batch = next(loader)
    expected = reference[step * 12 : (step + 1) * 12]
    for key, pixels, row in zip(batch.keys, batch.pixels, expected, strict=True):
        assert (key, pixels.numpy().tobytes()) == (row["key"], row["pixels"])


def test_all_frames_of_a_clip_are_cropped_and_mirrored_alike():
    """The gradient of a still clip looks the same in every frame, and differs between samples."""
    still = still_clip()
    views = []
    for seed in range(12):
        out = np.zeros((4, 32, 32, 3), np.uint8)
        random = np.random.Generator(np.random.Philox(key=seed))
        write_training_clip(still, random, AugmentConfig(scale=(0.3, 0.8), flip=True), out)
        assert np.abs(out.astype(int) - out[0]).max() <= 6
        views.append(out[0].astype(int))
    falls = [view[:, 0].mean() > view[:, -1].mean() for view in views]
    assert 0 < sum(falls) < 12
    assert len({view.tobytes() for view in views}) == 12


def still_clip() -> bytes:

    ramp = np.tile(np.linspace(20, 230, 96).astype(np.uint8)[None, :, None], (64, 1, 3))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("world", [1, 3])
def test_an_evaluation_looks_at_evenly_spaced_frames_of_every_clip(clips, world):
    seen = {}
    for rank in range(world):
        for batch in evaluation_batches(
            clips, size=32, batch_size=7, rank=rank, world=world, limit=20, frames=4
        ):
            assert batch.pixels.shape[1:] == (4, 32, 32, 3)
            for number, clip in zip(batch.indices, batch.pixels.numpy(), strict=True):
                seen[number] = [frame_of(frame) for frame in clip]
                assert number_of(clip) == number % 12
    assert seen == {number: [0, 4, 7, 11] for number in range(20)}


def test_short_clips_repeat_frames(tokenizer, tmp_path):
    records = [(f"{n}", {"mp4": encoded_clip(n, frames=n + 1), "txt": b"a clip"}) for n in range(3)]
    short = write_shards(tmp_path / "short", records, source={"name": "short"})
    (batch,) = evaluation_batches(short, size=32, batch_size=8, frames=4)
    frames = []
    for clip in batch.pixels.numpy():
        frames.append([frame_of(frame) for frame in clip])
    assert frames == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2]]


def test_bad_clips_are_replaced_quarantined_and_found_by_verify(tokenizer, tmp_path):
    good = encoded_clip(0)
    bad = {2: good[: len(good) // 2], 5: b"a text named mp4", 7: encoded_image(7)}
    records = []
    for n in range(12):
        records.append((f"{n:05d}", {"mp4": bad.get(n, encoded_clip(n)), "txt": b"a clip"}))
    records[9] = ("00009", {"jpg": encoded_image(9), "txt": b"an image among clips"})
    root = write_shards(tmp_path / "data", records, source={"name": "data"}).root
    options = {**OPTIONS, "global_batch": 12, "frames": 2, "max_bad_fraction": 1.0}
    with open_loader(
        [root], tokenizer=tokenizer, quarantine=tmp_path / "bad.jsonl", **options
    ) as loader:
        keys = set()
        for _ in range(3):
            for key in next(loader).keys:
                keys.add(key[-5:])
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        "00002": "undecodable",
        "00005": "undecodable",
        "00007": "undecodable",
        "00009": "missing-field",
    }
    messages = {line["key"]: line["message"] for line in lines}
    assert "holds an image where a video is needed" in messages["00009"]
    assert keys and not keys & {"00002", "00005", "00007", "00009"}
    assert verify(root) == []
    problems = verify(root, decode=True)
    assert len(problems) == 3
    assert all(f"sample 0000{n}" in problem for n, problem in zip((2, 5, 7), problems, strict=True))


def test_a_sample_may_hold_an_image_and_a_clip(tokenizer, tmp_path):
    members = {"mp4": encoded_clip(1), "jpg": encoded_image(1), "txt": b"both"}
    both = write_shards(tmp_path / "both", [("0", members)], source={"name": "both"})
    store = Store([both])
    assert (
        store.read(0, 0).media == members["jpg"]
        and store.read(0, 0, "video").media == members["mp4"]
    )
    assert verify(both.root, decode=True) == []


def test_data_of_another_kind_is_refused_with_its_fields(clips, images, tokenizer):
    for opened in (
        lambda: open_loader([clips.root], tokenizer=tokenizer, **OPTIONS),
        lambda: next(evaluation_batches(clips, size=32, batch_size=2)),
    ):
        with pytest.raises(
            DataError,
            match=r"holds no images \(jpg\|jpeg\|png\|webp\); its fields: mp4 \(50\), txt",
        ):
            opened()
    for opened in (
        lambda: open_loader([images.root], tokenizer=tokenizer, frames=4, **OPTIONS),
        lambda: next(evaluation_batches(images, size=32, batch_size=2, frames=4)),
    ):
        with pytest.raises(
            DataError, match=r"holds no videos \(mp4\|webm\); its fields: jpg \(260\), txt"
        ):
            opened()
    with pytest.raises(BadSample, match="00000 holds a video where an image is needed"):
        Store([clips]).read(0, 0)
    with pytest.raises(UsageError, match="frames must be at least 1"):
        open_loader([clips.root], tokenizer=tokenizer, frames=0, **OPTIONS)


def test_images_and_clips_in_one_data_set_are_refused(tokenizer, tmp_path):
    samples = [(f"p{n}", {"jpg": encoded_image(n), "txt": b"an image"}) for n in range(4)]
    samples += [(f"v{n}", {"mp4": encoded_clip(n), "txt": b"a clip"}) for n in range(4)]
    mixed = write_shards(tmp_path / "mixed", samples, source={"name": "mixed"})
    with pytest.raises(
        DataError, match=r"only 4 of the 8 samples of .* hold images .*one data set of the images"
    ):
        open_loader([mixed.root], tokenizer=tokenizer, **OPTIONS)


def test_an_index_counts_clips(clips):
    assert index(clips.root).fields == {"mp4": 50, "txt": 50}

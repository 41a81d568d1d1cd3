"""The embedded clips: motion as told, an exact ceiling, and the same scenes as the images."""

import copy
import json
import re
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.decode_video import open_clip
from data_pipeline.errors import UsageError
from data_pipeline.loader import evaluation_batches
from data_pipeline.sample import parse_sample
from data_pipeline.scenes.captions import render
from data_pipeline.scenes.draw import draw_clip, silhouette
from data_pipeline.scenes.generate import generate, sample_at
from data_pipeline.scenes.graph import COLOURS, HELD_OUT, SHAPES, scene_at
from data_pipeline.scenes.motion import FRAMES, set_in_motion, still_at
from data_pipeline.scenes.truth import ceiling, fits, is_scene, swapped
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify

SPLITS = ("train", "val", "test", "novel")
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


def moving_scene(seed, split, i, size=96):
    return set_in_motion(
        scene_at(seed, split, i, size), np.random.Generator(np.random.Philox(key=seed + i))
    )


@pytest.fixture(scope="module")
def samples():
    """40 clips of every split."""
    by_split = {}
    for split in SPLITS:
        records = [sample_at(0, split, i, 96, True) for i in range(40)]
        by_split[split] = [parse_sample(*record, "video") for record in records]
    return by_split


@pytest.fixture(scope="module")
def annotations(samples):
    return [sample.annotations for sample in chain.from_iterable(samples.values())]


def decoded(data):
    with open_clip(data) as clip:
        return list(clip.decode(range(clip.frames)))


def test_every_caption_fits_its_clip_and_matches_its_statement(annotations):
    for annotation in annotations:
        assert is_scene(annotation)
        assert len(annotation["captions"]) == len(annotation["statements"]) == 5
        for caption, statement in zip(
            annotation["captions"], annotation["statements"], strict=True
        ):
            assert fits(statement, annotation["scene"])
            assert render(statement) == caption
            assert caption == caption.lower() and len(caption.split()) <= 22


OBJECT = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
PLACE = "(?: (?:from|in|on|at) the ((?:top|bottom)? ?(?:left|right|middle|center)?))"
MOTION = r"(?:(?:moving|going) (left|right|up|down)|(standing still|not moving|staying|resting))"


def is_true_motion(caption, scene):
    """Check every motion and start that a text tells, from the text alone."""
    place = r"((?:top|bottom)? ?(?:left|right|middle|center)?)"
    motions = re.findall(rf"{OBJECT} {MOTION}(?: (?:from|in|on|at) the {place})?", caption)
    for colour, shape, motion, _, place in motions:
        item = next(o for o in scene["objects"] if (o["colour"], o["shape"]) == (colour, shape))
        if item["motion"] != (motion or "still"):
            return False
        row = 0 if "top" in place else 2 if "bottom" in place else 1
        column = 0 if "left" in place else 2 if "right" in place else 1
        if place and (item["column"], item["row"]) != (column, row):
            return False
    return True


def test_motion_read_from_the_text_is_true_and_swapped_captions_are_not(annotations):
    told = reversed_motions = 0
    for annotation in annotations:
        scene = annotation["scene"]
        motions = []
        for statement in annotation["statements"]:
            if "motion" in statement["objects"][0]:
                motions.append(statement)
        assert len(motions) >= 1
        for number, (caption, statement) in enumerate(
            zip(annotation["captions"], annotation["statements"], strict=True)
        ):
            assert is_true_motion(caption, scene)
            told += "motion" in statement["objects"][0]
            false = swapped(annotation, number)
            if false is not None and len(re.findall(MOTION, caption)) == 1 == len(scene["objects"]):
                assert not is_true_motion(false, scene)
                reversed_motions += 1
    assert told > 200 and reversed_motions > 20


def test_false_captions_of_clips_never_fit(annotations):
    for annotation in annotations:
        for number in range(5):
            false = swapped(annotation, number)
            assert false is None or false not in annotation["captions"]
            assert false == swapped(annotation, number)


def _shown_as(told, objects):
    """Return the first object that has the attributes that a statement tells."""
    for item in objects:
        if told.items() <= item.items():
            return item
    raise AssertionError(f"no object is {told}")


def test_relations_hold_in_every_frame(annotations):
    relations_checked = 0
    for annotation in annotations:
        for statement in annotation["statements"]:
            for first, name, second in statement["relations"]:
                relations_checked += 1
                told = [statement["objects"][k] for k in (first, second)]
                for frame in range(FRAMES):
                    shown = still_at(annotation["scene"], frame)["objects"]
                    item, other = (_shown_as(words, shown) for words in told)
                    ahead = {"left": other["x"] - item["x"], "right": item["x"] - other["x"]}
                    ahead |= {"above": other["y"] - item["y"], "below": item["y"] - other["y"]}
                    assert ahead[name] > 96 * 0.15
    assert relations_checked > 40


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from(SPLITS),
    st.integers(0, 10**8),
    st.sampled_from([48, 96, 224]),
)
def test_objects_stay_apart_and_inside_the_image_in_every_frame(seed, split, i, size):
    scene = moving_scene(seed, split, i, size)
    for frame in range(FRAMES):
        boxes = []
        for o in still_at(scene, frame)["objects"]:
            boxes.append((o["x"] - o["extent"] / 2, o["y"] - o["extent"] / 2, o["extent"]))
        for k, (left, top, extent) in enumerate(boxes):
            assert left >= 0 and top >= 0 and left + extent <= size and top + extent <= size
            for other_left, other_top, other in boxes[:k]:
                apart_x = left >= other_left + other or other_left >= left + extent
                apart_y = top >= other_top + other or other_top >= top + extent
                assert apart_x or apart_y
    for o, last in zip(scene["objects"], still_at(scene, FRAMES - 1)["objects"], strict=True):
        way = np.subtract(o["to"], o["from"])
        assert tuple(np.sign(way)) == STEPS[o["motion"]]
        assert o["from"] == [o["column"], o["row"]] and o["to"] == [
            int(3 * last["x"] / size),
            int(3 * last["y"] / size),
        ]


def test_motions_are_varied_and_nearly_every_clip_has_one():
    scenes = [moving_scene(0, "train", i) for i in range(300)]
    motions = []
    for scene in scenes:
        for o in scene["objects"]:
            motions.append(o["motion"])
    shares = {motion: motions.count(motion) / len(motions) for motion in STEPS}
    assert all(0.1 < share < 0.4 for share in shares.values())
    moving = 0
    for scene in scenes:
        moving += any(item["motion"] != "still" for item in scene["objects"])
    assert moving > 0.98 * len(scenes)


def test_a_clip_shows_its_scene(samples):
    for sample in samples["train"][:12]:
        scene = sample.annotations["scene"]
        frames = decoded(sample.media)
        assert len(frames) == FRAMES
        drawn = draw_clip(json.loads(json.dumps(scene)))
        assert (
            np.abs(np.stack(frames).astype(int) - drawn).mean() < 8
        )  # H.264 is all that lies between
        for number in (0, FRAMES - 1):
            pixels = frames[number].astype(np.float32)
            for o in still_at(scene, number)["objects"]:
                window, alpha, dark = silhouette(o, scene["size"])
                inside = pixels[window][(alpha == 1) & (dark == 0)]
                if len(inside) >= 60:  # colours have half the resolution
                    distances = {}
                    for name, rgb in COLOURS.items():
                        distances[name] = np.abs(inside.mean(0) - rgb).sum()
                    assert min(distances, key=distances.get) == o["colour"]


def test_a_clip_begins_like_the_image_of_the_same_number(samples):
    for split in SPLITS:
        for i, sample in enumerate(samples[split][:10]):
            still = scene_at(0, split, i, 96)
            moving = sample.annotations["scene"]
            for name in still.keys() - {"objects"}:
                assert moving[name] == still[name]
            for before, after in zip(still["objects"], moving["objects"], strict=True):
                assert before.items() <= after.items()
            pairs = {(o["colour"], o["shape"]) for o in still["objects"]}
            assert bool(pairs & HELD_OUT) == (split == "novel")


def a_clip_of(*objects):
    names = ("colour", "shape", "motion", "from", "to")
    made = [dict(zip(names, values, strict=True)) for values in objects]
    return {"objects": [o | {"column": o["from"][0], "row": o["from"][1]} for o in made]}


def test_a_statement_about_motion_fits_clips_with_that_motion_and_no_image():
    statement = {"objects": [{"colour": "red", "shape": "star", "motion": "left"}], "relations": []}
    assert fits(statement, a_clip_of(("red", "star", "left", [2, 0], [1, 0])))
    assert not fits(statement, a_clip_of(("red", "star", "right", [1, 0], [2, 0])))
    assert not fits(
        statement, {"objects": [{"colour": "red", "shape": "star", "column": 2, "row": 0}]}
    )


def test_a_place_or_relation_must_hold_for_the_whole_clip():
    star, heart = (
        ("red", "star", "right", [0, 1], [2, 1]),
        ("blue", "heart", "still", [1, 2], [1, 2]),
    )
    place = {"objects": [{"shape": "star", "column": 0, "row": 1}], "relations": []}
    assert not fits(place, a_clip_of(star))
    assert fits(place, a_clip_of(("red", "star", "still", [0, 1], [0, 1])))
    both = [{"shape": "star"}, {"shape": "heart"}]
    holding = set()
    for name in ("left", "right", "above", "below"):
        if fits({"objects": both, "relations": [[0, name, 1]]}, a_clip_of(star, heart)):
            holding.add(name)
    assert holding == {"above"}


def test_the_ceiling_counts_clips_that_move_alike_together():
    def annotation(motion, start, end):
        statement = {
            "objects": [{"colour": "red", "shape": "star", "motion": motion}],
            "relations": [],
        }
        return {"scene": a_clip_of(("red", "star", motion, start, end)), "statements": [statement]}

    left, right = annotation("left", [2, 0], [0, 0]), annotation("right", [0, 0], [2, 0])
    assert ceiling([left, right]) == 1
    assert ceiling([left, annotation("left", [1, 2], [0, 2]), right, right]) == 0.5
    stills = []
    for sample in (left, right):
        stills.append({**sample, "statements": [{"objects": [{"colour": "red"}], "relations": []}]})
    assert ceiling(stills) == 0.5


def test_motion_distinguishes_clips_that_begin_alike(samples):
    gallery = [sample.annotations for sample in samples["test"]]
    without = []
    for annotation in gallery:
        statements = copy.deepcopy(annotation["statements"])
        for statement in statements:
            for told in statement["objects"]:
                told.pop("motion", None)
                told.pop("from", None)
        without.append({**annotation, "statements": statements})
    assert ceiling(without) < ceiling(gallery) < 1


def few(folder, **changed):
    sizes = {"train": 4, "val": 2, "test": 2, "novel": 2, "size": 48, "workers": 1, "video": True}
    return generate(folder, **(sizes | changed))


def test_the_split_folders_are_whole_data_sets_of_clips(tmp_path):
    manifests = few(tmp_path)
    for split in SPLITS:
        assert verify(tmp_path / split, decode=True) == []
        manifest = Manifest.load(tmp_path / split)
        assert manifest.name == f"scene-clips-{split}" and manifest.source["kind"] == "scene-clips"
        assert manifest.fields == {
            "json": manifests[split].samples,
            "mp4": manifests[split].samples,
        }
    (batch,) = evaluation_batches(manifests["val"], size=48, batch_size=8, frames=3)
    assert batch.pixels.shape == (2, 3, 48, 48, 3)


def test_a_clip_depends_on_its_seed_split_and_number_alone(tmp_path):
    manifest = few(tmp_path, train=301, val=0, test=0, novel=0, seed=3, workers=2)["train"]
    stored, shard_index = manifest.shard_path(0).read_bytes(), manifest.index(0)
    for i in (0, 60, 300):
        parts = {m.extension: stored[m.offset : m.offset + m.size] for m in shard_index.members(i)}
        assert (shard_index.key(i), parts) == sample_at(3, "train", i, 48, True)
    assert (
        sample_at(4, "train", 0, 48, True)
        != sample_at(3, "train", 0, 48, True)
        != sample_at(3, "val", 0, 48, True)
    )


def test_clips_do_not_replace_images(tmp_path):
    few(tmp_path, video=False)
    with pytest.raises(UsageError, match="its kind is 'scenes', not 'scene-clips'"):
        few(tmp_path)
    with pytest.raises(UsageError, match="an even size, not 49"):
        few(tmp_path / "odd", size=49)

"""The embedded scenes: true captions, false swaps, disjoint splits, bytes from the seed alone."""

import io
import json
import re
from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.errors import UsageError
from data_pipeline.sample import parse_sample
from data_pipeline.scenes.captions import render
from data_pipeline.scenes.draw import draw, silhouette
from data_pipeline.scenes.generate import generate, sample_at
from data_pipeline.scenes.graph import (
    COLOURS,
    FILLS,
    HELD_OUT,
    SHAPES,
    SIZES,
    combination,
    scene_at,
)
from data_pipeline.scenes.truth import ceiling, fits, swapped
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify

SPLITS = ("train", "val", "test", "novel")


def sample(split, i, seed=0, size=96):
    return parse_sample(*sample_at(seed, split, i, size))


@pytest.fixture(scope="module")
def samples():
    """150 samples of every split."""
    by_split = {}
    for split in SPLITS:
        by_split[split] = [sample(split, i) for i in range(150)]
    return by_split


@pytest.fixture(scope="module")
def annotations(samples):
    return [sample.annotations for sample in chain.from_iterable(samples.values())]


def object_of(scene, **traits):
    for item in scene["objects"]:
        if traits.items() <= item.items():
            return item
    raise AssertionError(f"no object is {traits}")


def scene_of(*objects):
    names = ("size", "fill", "colour", "shape", "column", "row")
    return {"objects": [dict(zip(names, values, strict=True)) for values in objects]}


def test_every_caption_fits_its_scene_and_matches_its_statement(annotations):
    for annotation in annotations:
        assert len(annotation["captions"]) == len(annotation["statements"]) == 5
        for caption, statement in zip(
            annotation["captions"], annotation["statements"], strict=True
        ):
            assert fits(statement, annotation["scene"])
            assert render(statement) == caption


CANONICAL = {
    "little": "small",
    "big": "large",
    "filled": "solid",
    "outlined": "hollow",
    "center": "middle",
}
CANONICAL |= {"over": "above", "under": "below"}
OBJECT = (
    rf"((?:(?:{'|'.join([*SIZES, *FILLS])}) ){{0,2}}(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
)
PLACE = r"(?:in|on|at) (?:the )?((?:top|bottom) (?:left|right)|top|bottom|left|right|middle)"
RELATION = r"(left of|right of|to the left of|to the right of|above|below)"


def is_true(caption, scene):
    """Read the text alone, without the statement it was made from."""
    text = " ".join(CANONICAL.get(word, word) for word in caption.replace(",", " ,").split())
    objects = {words: object_called(words, scene) for words in re.findall(OBJECT, text)}
    if None in objects.values():
        return False
    places = re.findall(rf"{OBJECT} {PLACE}", text)
    places += [(words, place) for place, words in re.findall(rf"{PLACE} (?:an? )?{OBJECT}", text)]
    for words, place in places:
        row = 0 if "top" in place else 2 if "bottom" in place else 1
        column = 0 if "left" in place else 2 if "right" in place else 1
        if (objects[words]["row"], objects[words]["column"]) != (row, column):
            return False
    first = re.search(rf"{OBJECT} {RELATION} an? {OBJECT}(?: and {RELATION} an? {OBJECT})?", text)
    if first:
        subject, relation, words, second_relation, third_words = first.groups()
        told = [(relation, words)]
        if third_words:
            told.append((second_relation, third_words))
        for relation, words in told:
            if not is_related(objects[subject], relation, objects[words]):
                return False
    return True


def object_called(words, scene):
    *traits, colour, shape = words.split()
    same = [o for o in scene["objects"] if (o["colour"], o["shape"]) == (colour, shape)]
    return next((o for o in same if set(traits) <= {o["size"], o["fill"]}), None)


def is_related(item, relation, other):
    axis, cell = ("x", "column") if "left" in relation or "right" in relation else ("y", "row")
    first, second = (item, other) if "left" in relation or relation == "above" else (other, item)
    return first[axis] < second[axis] and first[cell] != second[cell]


def test_captions_read_as_plain_text_are_true_and_swapped_ones_are_not(annotations):
    for annotation in annotations:
        for number, caption in enumerate(annotation["captions"]):
            assert is_true(caption, annotation["scene"])
            false = swapped(annotation, number)
            assert false is None or not is_true(false, annotation["scene"])


def test_swapped_captions_use_the_words_of_true_captions(annotations):
    words = set()
    for annotation in annotations:
        for caption in annotation["captions"]:
            for word in caption.split():
                words.add(word)
    count = 0
    for annotation in annotations:
        for number in range(5):
            false = swapped(annotation, number)
            if false is None:
                continue
            count += 1
            assert false not in annotation["captions"]
            assert set(false.replace(",", "").split()) <= {word.strip(",") for word in words}
            assert false == swapped(annotation, number)
    assert count > 0.5 * 5 * len(annotations)


def word_counts(text):
    return Counter(text.replace(",", "").replace("an ", "a ").split())


def test_a_swap_exchanges_two_attributes_or_reverses_one_relation(annotations):
    opposite = {
        "left": "right",
        "right": "left",
        "above": "below",
        "below": "above",
        "over": "under",
        "under": "over",
    }
    relations = 0
    for annotation in annotations:
        for number, caption in enumerate(annotation["captions"]):
            false = swapped(annotation, number)
            if false is None:
                continue
            before, after = word_counts(caption), word_counts(false)
            if before != after:
                (gone,), (come,) = before - after, after - before
                assert opposite[gone] == come
                relations += 1
    assert relations > 20


def test_a_single_object_has_no_swapped_caption(annotations):
    single = [annotation for annotation in annotations if len(annotation["scene"]["objects"]) == 1]
    assert single
    for annotation in single:
        for number in range(5):
            assert swapped(annotation, number) is None


def test_the_five_captions_together_tell_every_attribute(annotations):
    for annotation in annotations:
        told = set()
        for statement in annotation["statements"]:
            for named in statement["objects"]:
                for name in named:
                    told.add(name)
        assert told == {"colour", "shape", "size", "fill", "column", "row"}
        if len(annotation["scene"]["objects"]) > 1:
            assert any(statement["relations"] for statement in annotation["statements"])


def test_captions_are_short_lower_case_and_of_few_words(samples):
    captions = []
    for split in SPLITS:
        for sample in samples[split]:
            for caption in sample.captions:
                captions.append(caption)
    assert max(len(caption.split()) for caption in captions) <= 22
    assert all(caption == caption.lower() for caption in captions)
    assert len({word.strip(",") for word in " ".join(captions).split()}) <= 100


def test_articles_agree_with_the_word_after_them(annotations):
    for annotation in annotations:
        words = []
        for caption in annotation["captions"]:
            for word in caption.split():
                words.append(word)
        for article, word in zip(words, words[1:], strict=False):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou")


def test_a_statement_does_not_fit_a_scene_that_differs_in_what_it_tells():
    red, blue = ("small", "solid", "red", "circle", 0, 1), ("large", "hollow", "blue", "star", 2, 1)
    statement = {
        "objects": [{"colour": "red", "shape": "circle"}, {"colour": "blue", "shape": "star"}],
        "relations": [[0, "left", 1]],
    }
    assert fits(statement, scene_of(red, blue))
    assert fits(statement, scene_of(blue, red))
    assert not fits(statement, scene_of(red))
    assert not fits(statement, scene_of(red, blue, blue))
    assert not fits(statement, scene_of((*red[:4], 2, 1), (*blue[:4], 0, 1)))
    assert not fits(statement, scene_of(red, (*blue[:2], "pink", *blue[3:])))


def test_two_named_objects_need_two_objects():
    statement = {"objects": [{"shape": "star"}, {"shape": "star"}], "relations": []}
    star, heart = ("small", "solid", "red", "star", 0, 0), ("small", "solid", "red", "heart", 1, 0)
    assert fits(statement, scene_of(star, (*star[:4], 2, 2)))
    assert not fits(statement, scene_of(star, heart))


def test_the_ceiling_shares_a_hit_among_the_scenes_that_a_caption_fits():
    def annotation(colour):
        statement = {"objects": [{"colour": colour, "shape": "star"}], "relations": []}
        return {
            "scene": scene_of(("small", "solid", colour, "star", 0, 0)),
            "statements": [statement],
        }

    assert ceiling([annotation("red"), annotation("blue")]) == 1
    assert (
        ceiling([annotation("red"), annotation("red"), annotation("blue"), annotation("blue")])
        == 0.5
    )


def test_the_ceiling_of_a_gallery_leaves_room_to_be_reached_and_missed(samples):
    assert 0.6 < ceiling([sample.annotations for sample in samples["test"]]) < 1


def test_the_scenes_show_every_attribute_and_number_of_objects(samples):
    scenes = [sample.annotations["scene"] for sample in samples["train"]]
    objects = []
    for scene in scenes:
        for o in scene["objects"]:
            objects.append(o)
    assert len(SHAPES) >= 8 and len(COLOURS) >= 8 and len(SIZES) == 2 and len(FILLS) == 3
    expected = {
        "shape": set(SHAPES),
        "colour": set(COLOURS),
        "size": set(SIZES),
        "fill": set(FILLS),
    }
    for name, values in expected.items():
        assert {item[name] for item in objects} == values
    counts = np.bincount([len(scene["objects"]) for scene in scenes], minlength=5)[1:]
    assert counts.min() > 20


def test_no_scene_is_in_two_splits():
    seen = {}
    for split in SPLITS:
        seen[split] = set()
        for seed in (0, 1):
            for i in range(300):
                seen[split].add(tuple(combination(scene_at(seed, split, i, 96)["objects"])))
    for split, other in combinations(SPLITS, 2):
        assert not seen[split] & seen[other]


def test_held_out_pairs_are_in_every_novel_scene_and_nowhere_else(samples):
    for split in SPLITS:
        for sample in samples[split]:
            pairs = {(o["colour"], o["shape"]) for o in sample.annotations["scene"]["objects"]}
            assert bool(pairs & HELD_OUT) == (split == "novel")
            assert len(pairs) == len(sample.annotations["scene"]["objects"])


def test_false_captions_do_not_give_themselves_away_by_a_held_out_pair(samples):
    pairs = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for sample in samples["test"]:
        false = [swapped(sample.annotations, number) or "" for number in range(5)]
        for pair in pairs:
            assert not any(pair in text for text in false)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from(SPLITS),
    st.integers(0, 10**8),
    st.sampled_from([48, 96, 224]),
)
def test_objects_are_apart_inside_the_image_and_in_their_cells(seed, split, i, size):
    scene = scene_at(seed, split, i, size)
    boxes = []
    for o in scene["objects"]:
        boxes.append((o["x"] - o["extent"] / 2, o["y"] - o["extent"] / 2, o["extent"]))
    for o, (left, top, extent) in zip(scene["objects"], boxes, strict=True):
        assert left >= 0 and top >= 0 and left + extent <= size and top + extent <= size
        assert (int(3 * o["x"] / size), int(3 * o["y"] / size)) == (o["column"], o["row"])
    for k, (left, top, extent) in enumerate(boxes):
        for other_left, other_top, other_extent in boxes[:k]:
            apart_x = left >= other_left + other_extent or other_left >= left + extent
            apart_y = top >= other_top + other_extent or other_top >= top + extent
            assert apart_x or apart_y


def test_relations_hold_in_pixels_too(annotations):
    for annotation in annotations:
        for statement in annotation["statements"]:
            for first, name, second in statement["relations"]:
                item = object_of(annotation["scene"], **statement["objects"][first])
                other = object_of(annotation["scene"], **statement["objects"][second])
                shift = {"left": other["x"] - item["x"], "right": item["x"] - other["x"]}
                shift |= {"above": other["y"] - item["y"], "below": item["y"] - other["y"]}
                assert shift[name] > 96 * 0.15


def test_the_color_of_an_object_is_seen_where_its_silhouette_is(samples):
    for sample in samples["train"][:40]:
        scene = sample.annotations["scene"]
        pixels = np.asarray(Image.open(io.BytesIO(sample.media)).convert("RGB"), np.float32)
        for o in scene["objects"]:
            window, alpha, dark = silhouette(o, scene["size"])
            inside = pixels[window][(alpha == 1) & (dark == 0)]
            if len(inside) >= 20:
                color = inside.mean(0)
                distances = {}
                for name, rgb in COLOURS.items():
                    distances[name] = np.abs(color - np.array(rgb)).sum()
                assert min(distances, key=distances.get) == o["colour"]


def test_the_image_can_be_drawn_again_from_the_json(samples):
    for sample in samples["novel"][:10]:
        drawn = draw(json.loads(json.dumps(sample.annotations["scene"])))
        assert drawn.shape == (96, 96, 3) and drawn.dtype == np.uint8
        stored = np.asarray(Image.open(io.BytesIO(sample.media)), np.float32)
        assert np.abs(stored - drawn).mean() < 8  # JPEG is all that lies between


def test_large_objects_are_clearly_larger_than_small_ones(samples):
    objects = []
    for split in SPLITS:
        for sample in samples[split]:
            for o in sample.annotations["scene"]["objects"]:
                objects.append(o)
    assert max(o["extent"] for o in objects if o["size"] == "small") < 22
    assert min(o["extent"] for o in objects if o["size"] == "large") > 30


def test_a_sample_depends_on_its_seed_split_and_number_alone(tmp_path):
    few = generate(tmp_path / "few", train=12, val=3, test=3, novel=3, seed=5, workers=1)
    drawn_in_parallel = generate(
        tmp_path / "many", train=400, val=0, test=0, novel=0, seed=5, workers=2
    )
    assert list(drawn_in_parallel) == ["train"]
    for manifest in (few["train"], drawn_in_parallel["train"]):
        stored, shard_index = manifest.shard_path(0).read_bytes(), manifest.index(0)
        for i in (0, 7, 11):
            parts = {}
            for m in shard_index.members(i):
                parts[m.extension] = stored[m.offset : m.offset + m.size]
            assert (shard_index.key(i), parts) == sample_at(5, "train", i, 96)
    assert (
        sample_at(6, "train", 0, 96) != sample_at(5, "train", 0, 96) != sample_at(5, "val", 0, 96)
    )


def test_the_split_folders_are_whole_data_sets(tmp_path):
    manifests = generate(tmp_path, train=5, val=4, test=3, novel=2, size=64, workers=1)
    assert {split: manifest.samples for split, manifest in manifests.items()} == dict(
        zip(SPLITS, (5, 4, 3, 2), strict=True)
    )
    for split in SPLITS:
        assert verify(tmp_path / split, decode=True) == []
        assert Manifest.load(tmp_path / split).name == f"scenes-{split}"


def few(folder, **changed):
    return generate(
        folder,
        **({"train": 4, "val": 2, "test": 2, "novel": 2, "size": 48, "workers": 1} | changed),
    )


def test_a_second_call_keeps_what_is_valid(tmp_path):
    few(tmp_path)
    before = (tmp_path / "train" / "train-000000.tar").stat().st_mtime_ns
    few(tmp_path)
    assert (tmp_path / "train" / "train-000000.tar").stat().st_mtime_ns == before


def test_a_damaged_split_is_written_again(tmp_path):
    digest = few(tmp_path)["train"].digest
    shard = tmp_path / "train" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert few(tmp_path)["train"].digest == digest
    assert verify(tmp_path / "train") == []


def test_leftovers_of_an_interrupted_call_are_removed(tmp_path):
    unfinished = tmp_path / ".train.unfinished"
    unfinished.mkdir()
    (unfinished / "train-000000.tar").write_bytes(b"half")
    few(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*SPLITS, "pairs"])


def test_a_data_set_with_other_parameters_in_the_way_is_refused(tmp_path):
    few(tmp_path)
    with pytest.raises(UsageError, match="its seed is 0, not 1"):
        few(tmp_path, seed=1)
    with pytest.raises(UsageError, match="its samples is 4, not 5"):
        few(tmp_path, train=5)


@pytest.mark.parametrize(
    "changed", [{"size": 8}, {"seed": -1}, {"train": -1}, dict.fromkeys(SPLITS, 0)]
)
def test_impossible_parameters_are_refused(tmp_path, changed):
    with pytest.raises(UsageError):
        few(tmp_path, **changed)

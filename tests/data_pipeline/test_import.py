"""`glscl data import`: official files become shards, and everything left out is listed."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.decode import decode, open_image
from data_pipeline.decode_video import open_clip
from data_pipeline.errors import DataError
from data_pipeline.importing.entries import UnreadableMedia, import_entries
from data_pipeline.regions import decode_mask, parse_regions
from data_pipeline.sample import BadSample, Sample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.verify import verify
from data_pipeline.sources import (
    align_bench,
    karpathy,
    lsmdc,
    msrvtt,
    nlvr2,
    sugarcrepe,
    vqa_v2,
    winoground,
)
from launch.cli import main
from tests.data_pipeline import official
from tests.data_pipeline.conftest import encoded_image, frame_of, number_of


def imported(words: list[str], out: Path, *options: str) -> Manifest:
    paths, more = words, []
    if "--annotations" in words:
        paths, more = words[:-2], words[-2:]
    assert main(["data", "import", *paths, str(out), *more, *options, "--workers", "1"]) == 0
    assert verify(out, decode=True) == []
    return Manifest.load(out)


def samples(manifest: Manifest, kind: str = "image", texts: str = "captions") -> dict[str, Sample]:
    """Return the samples by their key inside the shard."""
    store = Store([manifest])
    read = [store.read(0, number, kind, texts) for number in range(manifest.samples)]
    return {sample.key.rpartition("/")[2]: sample for sample in read}


def refused(capsys: pytest.CaptureFixture[str], words: list[str], exit_code: int = 3) -> str:
    """Run a command that fails and return what it prints on stderr."""
    assert main(["data", "import", *words, "--workers", "1"]) == exit_code
    return capsys.readouterr().err


# COCO and Flickr30k -------------------------------------------------------------------------------


def test_coco_test_holds_every_caption_of_its_images(tmp_path):
    manifest = imported(official.coco(tmp_path), tmp_path / "out", "--split", "test")
    by_key = samples(manifest)
    assert list(by_key) == ["000000391895", "000000522418"]  # the file's order
    assert [len(sample.captions) for sample in by_key.values()] == [5, 7]
    sample = by_key["000000522418"]
    assert sample.captions[6] == "A man 6 with a red helmet, on picture 522418."
    assert sample.media == encoded_image(522418)
    assert sample.image_id == "522418"


def test_coco_is_trained_on_train_and_restval(tmp_path):
    manifest = imported(official.coco(tmp_path), tmp_path / "out", "--split", "train+restval")
    assert list(samples(manifest)) == ["000000057870", "000000060623", "000000000009"]
    assert manifest.name == "coco-karpathy-train+restval"


def test_the_manifest_says_where_the_samples_come_from(tmp_path):
    words = official.coco(tmp_path)
    source = imported(words, tmp_path / "out", "--split", "val").source
    digest = hashlib.sha256(Path(words[1]).read_bytes()).hexdigest()
    assert source["files"] == {"dataset_coco.json": f"sha256:{digest}"}
    assert (source["kind"], source["split"], source["pictures"]) == ("coco", "val", "coco")
    assert source["left_out"] == []


def test_images_may_be_in_one_folder(tmp_path):
    _, annotations, images = official.coco(tmp_path)
    flat = tmp_path / "flat"
    for path in Path(images).rglob("*.jpg"):
        official.put(flat / path.name, path.read_bytes())
    manifest = imported(["coco", annotations, str(flat)], tmp_path / "out", "--split", "test")
    assert manifest.samples == 2


def test_flickr30k_has_neither_folders_nor_numbers(tmp_path):
    by_key = samples(imported(official.flickr30k(tmp_path), tmp_path / "out", "--split", "test"))
    assert [(key, sample.image_id) for key, sample in by_key.items()] == [
        ("1007129816", "1007129816")
    ]


def test_the_other_data_sets_file_is_refused(tmp_path, capsys):
    _, annotations, images = official.coco(tmp_path)
    message = refused(
        capsys, ["flickr30k", annotations, images, str(tmp_path / "out"), "--split", "test"]
    )
    assert "dataset_coco.json" in message and "of 'coco', not of 'flickr30k'" in message


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"dataset": "coco"}', b'{"dataset": "coco", "images": [{}]}']
)
def test_a_file_that_is_not_karpathys_is_named(tmp_path, capsys, content):
    _, annotations, images = official.coco(tmp_path)
    Path(annotations).write_bytes(content)
    message = refused(
        capsys, ["coco", annotations, images, str(tmp_path / "out"), "--split", "test"]
    )
    assert "dataset_coco.json" in message
    assert not (tmp_path / "out").exists()


def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    _, annotations, images = official.coco(tmp_path)
    document = json.loads(Path(annotations).read_bytes())
    document["images"][1]["filename"] = "../../secret.jpg"
    official.put(Path(annotations), document)
    with pytest.raises(DataError, match="leads out of the folder"):
        karpathy.read("coco", Path(annotations), Path(images), "test")


# Images that are missing or unreadable ----------------------------------------------------------


def test_missing_images_are_all_named_and_nothing_is_written(tmp_path, capsys):
    words = official.coco(tmp_path)
    for name in ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000522418.jpg"):
        (tmp_path / "coco" / "val2014" / name).unlink()
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "import", *words, str(tmp_path / "out"), "--split", "test", "--json"]) == 3
    output = capsys.readouterr()
    unreadable = json.loads(output.out)["unreadable"]
    assert [(record["key"], record["reason"]) for record in unreadable] == [
        ("000000391895", "missing"),
        ("000000522418", "missing"),
    ]
    assert "2 of 2 samples" in output.err and "COCO_val2014_000000391895.jpg" in output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_image_stops_the_import_and_is_named(tmp_path, capsys):
    words = official.coco(tmp_path)
    image = tmp_path / "coco" / "val2014" / "COCO_val2014_000000391895.jpg"
    image.write_bytes(image.read_bytes()[:300])
    assert main(["data", "import", *words, str(tmp_path / "out"), "--split", "test"]) == 3
    output = capsys.readouterr()
    assert output.out.startswith(f"000000391895: {image}: ")
    assert "--unreadable" in output.err
    assert not (tmp_path / "out").exists()


def test_samples_that_are_left_out_are_listed_in_the_manifest(tmp_path, capsys):
    words = official.nlvr2(tmp_path)
    (tmp_path / "images" / "dev" / "dev-850-0-img1.png").write_bytes(b"not a picture")
    (tmp_path / "images" / "dev" / "dev-7-3-img0.png").unlink()
    manifest = imported(words, tmp_path / "out", "--unreadable", "leave-out", "--json")
    assert json.loads(capsys.readouterr().out)["left_out"] == 2
    assert list(samples(manifest, "pair", "questions")) == ["dev-850-1"]
    left_out = {record["key"]: record for record in manifest.source["left_out"]}
    assert left_out["dev-7-3"]["reason"] == "missing"
    assert left_out["dev-850-0"] == {
        "key": "dev-850-0",
        "file": str(tmp_path / "images" / "dev" / "dev-850-0-img1.png"),
        "reason": "not a JPEG, PNG or WebP image (13 bytes)",
        "questions": 2,
    }


def test_an_unreadable_sample_that_is_kept_is_a_bad_sample_with_its_statements(tmp_path):
    words = official.nlvr2(tmp_path)
    (tmp_path / "images" / "dev" / "dev-850-0-img1.png").write_bytes(b"not a picture")
    (tmp_path / "images" / "dev" / "dev-7-3-img0.png").unlink()
    assert main(["data", "import", *words, str(tmp_path / "out"), "--unreadable", "keep"]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert [record["key"] for record in manifest.source["kept_unreadable"]] == [
        "dev-850-0",
        "dev-7-3",
    ]
    assert manifest.samples == 3 and manifest.source["left_out"] == []
    store = Store([manifest])
    assert store.read(0, 0, "pair", "questions").second == b"not a picture"
    with pytest.raises(BadSample, match="its 0.png member is empty") as bad:
        store.read(0, 2, "pair", "questions")
    assert bad.value.reason == "undecodable"
    assert len(verify(tmp_path / "out", decode=True)) == 2


def test_leaving_out_everything_is_an_error(tmp_path, capsys):
    words = official.winoground(tmp_path, examples=1)
    (tmp_path / "images" / "ex_0_img_1.png").unlink()
    assert "no samples" in refused(
        capsys, [*words, str(tmp_path / "out"), "--unreadable", "leave-out"]
    )


# Interrupted imports ------------------------------------------------------------------------------


def interrupted(tmp_path: Path) -> tuple[list, dict, Path]:
    """Return entries, source and the finished shard after an import that stopped at a bad image."""
    _, annotations, images = official.coco(tmp_path)
    entries, source = karpathy.read("coco", Path(annotations), Path(images), "train+restval")
    damaged = entries[-1].media[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"\xff\xd8")
    with pytest.raises(UnreadableMedia):
        import_entries(tmp_path / "out", entries, source=source, samples_per_shard=2)
    damaged.write_bytes(whole)
    return entries, source, tmp_path / ".out.unfinished" / "shard-000000.tar"


def test_resuming_keeps_finished_shards_and_gives_the_same_data_set(tmp_path):
    entries, source, finished = interrupted(tmp_path)
    written = finished.stat().st_mtime_ns
    resumed = import_entries(
        tmp_path / "out", entries, source=source, samples_per_shard=2, resume=True
    )
    assert resumed.shard_path(0).stat().st_mtime_ns == written
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "shard-000000.tar",
        "shard-000000.tar.index.safetensors",
        "shard-000001.tar",
        "shard-000001.tar.index.safetensors",
    ]
    whole = import_entries(tmp_path / "whole", entries, source=source, samples_per_shard=2)
    assert whole.digest == resumed.digest


def test_shards_of_an_interrupted_import_of_other_entries_are_not_kept(tmp_path):
    entries, source, finished = interrupted(tmp_path)
    written = finished.stat().st_mtime_ns
    entries[0].annotations["captions"].append("Another caption.")
    resumed = import_entries(
        tmp_path / "out", entries, source=source, samples_per_shard=2, resume=True
    )
    assert resumed.shard_path(0).stat().st_mtime_ns != written
    assert "Another caption." in next(iter(samples(resumed).values())).captions


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path):
    _, annotations, images = official.coco(tmp_path)
    entries, source = karpathy.read("coco", Path(annotations), Path(images), "train+restval")
    digests = set()
    for workers in (1, 2):
        manifest = import_entries(
            tmp_path / f"{workers}", entries, source=source, samples_per_shard=2, workers=workers
        )
        digests.add(manifest.digest)
    assert len(digests) == 1


# Visual Genome ------------------------------------------------------------------------------------


def test_the_manifest_of_visual_genome_says_which_test_images_were_left_out(tmp_path):
    words = official.visual_genome(tmp_path)
    coco, flickr30k = official.coco(tmp_path), official.flickr30k(tmp_path)
    options = ("--without-coco", coco[1], "--without-flickr30k", flickr30k[1])
    manifest = imported(words, tmp_path / "out", *options)
    by_key = samples(manifest)
    assert list(by_key) == ["000000001", "000000003"]  # an image of Flickr30k's train stays
    assert by_key["000000003"].captions == ("the clock is green 3", "a man")
    assert manifest.source["excluded"] == ["coco", "flickr30k"]
    assert manifest.source["shares_pictures_with"] == [
        {"pictures": "coco", "known": 1, "excluded_splits": ["val", "test"], "excluded": 1},
        {"pictures": "flickr30k", "known": 2, "excluded_splits": ["val", "test"], "excluded": 0},
    ]


def test_the_manifest_of_visual_genome_says_that_test_images_were_kept(tmp_path):
    manifest = imported(official.visual_genome(tmp_path), tmp_path / "out")
    assert manifest.samples == 3 and manifest.source["excluded"] == []
    assert [shared["excluded_splits"] for shared in manifest.source["shares_pictures_with"]] == [
        [],
        [],
    ]


# VQA v2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [int, str])
def test_questions_and_annotations_are_joined_by_id(tmp_path, ids):
    words = official.vqa_v2(tmp_path, ids=ids)
    by_key = samples(imported(words, tmp_path / "out"), texts="questions")
    assert list(by_key) == ["000000262148", "000000393225"]
    first, second = by_key["000000262148"].questions
    assert (first.id, first.question, first.type, first.answer_type) == (
        262148000,
        "Where is he looking?",
        "where",
        "other",
    )
    assert first.answers == ("down",) * 9 + ("at table",)
    assert (second.id, second.answers) == (262148001, ("watching",) * 10)
    assert by_key["000000262148"].image_id == "262148"


def test_vqa_test_has_questions_without_answers(tmp_path):
    manifest = imported(official.vqa_v2(tmp_path, "test-dev2015"), tmp_path / "out")
    assert manifest.name == "vqa-v2-test-dev2015"
    questions = []
    for sample in samples(manifest, texts="questions").values():
        questions += sample.questions
    assert len(questions) == 3 and not any(question.answers for question in questions)


def test_questions_that_have_answers_need_the_annotations_file(tmp_path, capsys):
    words = official.vqa_v2(tmp_path)[:3]
    assert "--annotations" in refused(capsys, [*words, str(tmp_path / "out")], exit_code=2)


def test_annotations_of_other_questions_are_refused(tmp_path):
    words = official.vqa_v2(tmp_path)
    document = json.loads(Path(words[-1]).read_bytes())
    document["annotations"][0]["question_id"] = 5
    annotations = official.put(Path(words[-1]), document)
    with pytest.raises(
        DataError,
        match=r"1 questions have no annotation \(262148001\), 1 annotations have no question \(5",
    ):
        vqa_v2.read(Path(words[1]), annotations, Path(words[2]))


def test_a_question_that_comes_twice_is_refused(tmp_path):
    words = official.vqa_v2(tmp_path)
    document = json.loads(Path(words[1]).read_bytes())
    document["questions"].append(document["questions"][0])
    questions = official.put(Path(words[1]), document)
    with pytest.raises(DataError, match="1 questions come twice"):
        vqa_v2.read(questions, Path(words[-1]), Path(words[2]))


# NLVR2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["dev", "train"])
def test_statements_belong_to_their_pair_and_name_their_group(tmp_path, split):
    manifest = imported(official.nlvr2(tmp_path, split), tmp_path / "out")
    by_key = samples(manifest, "pair", "questions")
    assert list(by_key) == [f"{split}-850-0", f"{split}-850-1", f"{split}-7-3"]
    first = by_key[f"{split}-850-0"]
    assert (first.media, first.second) == (encoded_image(0, kind="PNG"), encoded_image(1))
    assert [(q.id, q.answers, q.type, q.group) for q in first.questions] == [
        (f"{split}-850-0-0", ("True",), "statement", f"{split}-850-0"),
        (f"{split}-850-0-1", ("False",), "statement", f"{split}-850-1"),
    ]
    # The same sentence about another pair is of the same group.
    assert [q.group for q in by_key[f"{split}-850-1"].questions] == [f"{split}-850-0"]
    assert by_key[f"{split}-7-3"].questions[0].question == "Sentence 1 of set 7."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identifier": "dev-850-0-0"}, "comes twice"),
        ({"identifier": "dev-9-0-0", "label": "maybe"}, "maybe"),
        ({"identifier": "dev-1"}, ""),
    ],
)
def test_malformed_statements_are_refused(tmp_path, change, message):
    _, statements, images = official.nlvr2(tmp_path)
    lines = Path(statements).read_text().splitlines()
    official.put(
        Path(statements), "\n".join([*lines, json.dumps(json.loads(lines[-1]) | change)]).encode()
    )
    with pytest.raises(DataError, match=rf"dev\.json is not a statements file.*{message}"):
        nlvr2.read(Path(statements), Path(images))


# MSR-VTT and LSMDC --------------------------------------------------------------------------------


def test_the_test_split_of_msrvtt_is_the_list_joined_by_id(tmp_path):
    by_key = samples(
        imported(official.msrvtt(tmp_path), tmp_path / "out", "--split", "test"), "video"
    )
    assert {key: sample.captions for key, sample in by_key.items()} == {
        "video3": ("a woman, and a dog",),
        "video1": ("caption of 1",),
    }
    with open_clip(by_key["video3"].media) as clip:
        assert number_of(next(clip.decode([0]))) == 4  # video10 is the first clip of the miniature


def test_msrvtt_validation_comes_from_training_and_the_splits_share_no_video(tmp_path):
    words = official.msrvtt(tmp_path)
    paths = [Path(word) for word in words[1:]]
    ids = {}
    for split in msrvtt.SPLITS:
        ids[split] = [entry.annotations["image_id"] for entry in msrvtt.read(*paths, split)[0]]
    assert {split: len(of_split) for split, of_split in ids.items()} == {
        "train": 3,
        "val": 3,
        "test": 2,
    }
    assert len(set().union(*ids.values())) == 8
    entries, source = msrvtt.read(*paths, "val")
    clip = entries[0].annotations
    video = clip["image_id"]
    assert clip["captions"] == [f"caption 0 of {video}", f"caption 1 of {video}"]  # by sen_id
    assert source["validation"].startswith("3 of the videos that are not in the test list")


def test_a_list_with_unknown_videos_is_refused(tmp_path):
    _, captions, test_list, videos = official.msrvtt(tmp_path)
    Path(test_list).write_text("key,vid_key,video_id,sentence\nret0,msr99,video99,text\n")
    with pytest.raises(
        DataError, match="names 1 videos that .*MSRVTT_data.json does not hold: video99"
    ):
        msrvtt.read(Path(captions), Path(test_list), Path(videos), "test")


def test_a_missing_video_is_named(tmp_path, capsys):
    words = official.msrvtt(tmp_path)
    (tmp_path / "videos" / "video1.mp4").unlink()
    assert main(["data", "import", *words, str(tmp_path / "out"), "--split", "test"]) == 3
    assert f"video1: {tmp_path}/videos/video1.mp4: missing" in capsys.readouterr().out


def test_lsmdc_videos_are_encoded_again_frame_by_frame(tmp_path):
    manifest = imported(official.lsmdc(tmp_path), tmp_path / "out", "--split", "test")
    by_key = samples(manifest, "video")
    # A key ends at its first dot, so the times in the names had to go.
    assert list(by_key) == [
        "0001_American_Beauty_00_00_51_926-00_00_54_129",
        "0001_American_Beauty_00_02_24_072-00_02_26_070",
    ]
    first, second = by_key.values()
    assert first.captions == ('SOMEONE says "no.',)
    assert first.image_id == "0001_American_Beauty_00.00.51.926-00.00.54.129"
    with open_clip(second.media) as clip:
        frames = list(clip.decode(range(clip.frames)))
    assert [frame_of(frame) for frame in frames] == list(range(12))
    assert {number_of(frame) for frame in frames} == {1}


def test_a_cut_or_fake_avi_is_named(tmp_path, capsys):
    words = official.lsmdc(tmp_path)
    clip = next((tmp_path / "films").rglob("*00.54.129.avi"))
    for content, message in [
        (clip.read_bytes()[:-900], "the video is cut"),
        (b"RIFF" + bytes(99), "cannot be decoded"),
    ]:
        clip.write_bytes(content)
        assert (
            main(
                [
                    "data",
                    "import",
                    *words,
                    str(tmp_path / "out"),
                    "--split",
                    "test",
                    "--workers",
                    "1",
                ]
            )
            == 3
        )
        assert f"{clip}: " in (out := capsys.readouterr().out) and message in out


def test_a_row_with_another_number_of_columns_is_named(tmp_path):
    _, table, videos = official.lsmdc(tmp_path)
    Path(table).write_text(Path(table).read_text() + "a\tb\n")
    with pytest.raises(
        DataError, match="publictect.csv is not a table of LSMDC.*row 3 has 2 columns"
    ):
        lsmdc.read(Path(table), Path(videos), "test")


# ALIGN-BENCH, SugarCrepe, Winoground --------------------------------------------------------------


def test_align_bench_masks_are_the_tensors_of_the_pickles(tmp_path):
    by_key = samples(imported(official.align_bench(tmp_path), tmp_path / "out"))
    assert list(by_key) == ["1000", "15"]
    sample = by_key["15"]
    assert sample.captions == ("A red dog on grass 15.",)
    dog, grass = parse_regions("15", sample.annotations)
    assert (dog.phrase, dog.caption, len(grass.boxes)) == ("red dog", 0, 1)
    assert sample.annotations["without_place"] == ["sky"]
    assert dog.boxes == ((30, 10, 50, 20), (60, 0, 64, 5))
    for (x1, y1, x2, y2), mask in zip(dog.boxes, dog.masks, strict=True):
        expected = np.zeros((48, 64), dtype=bool)
        expected[int(y1) : int(y2), int(x1) : int(x2)] = True
        assert (decode_mask(mask) == expected).all()
    assert decode(open_image(sample.media)).shape == (48, 64, 3)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    folder = Path(official.align_bench(tmp_path)[1])
    official.put(folder / "images" / "15.jpg", encoded_image(15, size=(48, 64)))
    with pytest.raises(
        DataError,
        match=r"15.pkl is refused: a mask of 'red dog' is \(48, 64\), but its image is \(64, 48\)",
    ):
        align_bench.read(folder)


def test_a_box_that_is_upside_down_is_refused(tmp_path):
    folder = Path(official.align_bench(tmp_path)[1])
    place = {"bbox_mask": [5, 9, 1, 2], "pixel_mask": torch.zeros(48, 64, dtype=torch.bool)}
    document = {"caption": "A dog.", "annotation": {"dog": [place]}}
    official.put(folder / "pkls" / "15.pkl", pickle.dumps(document))
    with pytest.raises(DataError, match=r"15\.pkl is refused: .*'dog'.*a box is"):
        align_bench.read(folder)


def test_an_image_without_a_pickle_is_named(tmp_path):
    folder = Path(official.align_bench(tmp_path)[1])
    (folder / "pkls" / "15.pkl").unlink()
    with pytest.raises(DataError, match=r"1 images .* have no annotation .*: 15.jpg"):
        align_bench.read(folder)


def test_a_sample_of_sugarcrepe_holds_all_foils_of_its_caption(tmp_path):
    by_key = samples(imported(official.sugarcrepe(tmp_path), tmp_path / "out"))
    assert list(by_key) == ["000000085329-0", "000000085329-1", "000000174482-0"]
    mat, grey, other = by_key.values()
    assert [foil["kind"] for foil in mat.annotations["foils"]] == list(sugarcrepe.KINDS)
    assert mat.captions == ("A cat is on a mat.",)
    assert grey.annotations["foils"] == [
        {"caption": "A grey mat.", "kind": "swap_obj", "id": "swap_obj-12"}
    ]
    assert mat.image_id == grey.image_id == "85329" and other.image_id == "174482"


def test_sugarcrepe_needs_all_its_files(tmp_path):
    _, folder, images = official.sugarcrepe(tmp_path)
    (Path(folder) / "add_obj.json").unlink()
    with pytest.raises(DataError, match=r"lacks add_obj\.json"):
        sugarcrepe.read(Path(folder), Path(images))


def test_a_sample_of_winoground_has_two_images_and_two_captions(tmp_path):
    by_key = samples(imported(official.winoground(tmp_path), tmp_path / "out"), "pair")
    second = by_key["000001"]
    assert second.captions == (
        "an old person kisses a young person 1",
        "a young person kisses an old person 1",
    )
    assert second.media == encoded_image(2, kind="PNG")
    assert second.second == encoded_image(3, kind="PNG")
    assert second.annotations["collapsed_tag"] == "Object"


def test_a_winoground_line_without_a_caption_is_refused(tmp_path):
    _, examples, images = official.winoground(tmp_path)
    Path(examples).write_text('{"id": 0, "image_0": "a", "image_1": "b", "caption_0": "x"}')
    with pytest.raises(DataError, match=r"examples.jsonl is not .*: there is no 'caption_1'"):
        winoground.read(Path(examples), Path(images))


# The command --------------------------------------------------------------------------------------


def test_a_missing_file_gives_one_clear_line(tmp_path, capsys):
    message = refused(
        capsys, ["nlvr2", str(tmp_path / "dev.json"), str(tmp_path), str(tmp_path / "out")]
    )
    assert (
        message == f"glscl: error: {tmp_path}/dev.json cannot be read: No such file or directory\n"
    )


def test_the_split_is_required(tmp_path, capsys):
    message = refused(capsys, ["coco", "a.json", str(tmp_path), str(tmp_path / "out")], exit_code=2)
    assert "--split" in message


def test_a_folder_with_files_is_not_overwritten(tmp_path, capsys):
    words = official.winoground(tmp_path)
    official.put(tmp_path / "out" / "mine.txt", b"mine")
    assert "not an empty folder" in refused(capsys, [*words, str(tmp_path / "out")], exit_code=2)

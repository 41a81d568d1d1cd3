"""Video retrieval: frames, any number of captions, and videos that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError, UsageError
from data_pipeline.scenes.encode import encode_clip
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import MEMBERS, Store
from data_pipeline.shards.write import write_shards
from eval.encoding.features import encode_images, encode_texts, load
from eval.encoding.matching_scores import match_margins
from eval.results.schema import read_records
from eval.stages import retrieval
from eval.stages.video_retrieval import evaluate
from eval.stages.video_retrieval.stage import metrics
from pretrain.model import GLSCLModel

from .conftest import save_model

VIDEOS = 6


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    generate(out, train=0, val=0, test=VIDEOS, novel=0, size=48, seed=5, workers=1, video=True)
    return out / "test"


@pytest.fixture(scope="module")
def video_model(
    knowing_model: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model that knows images, with a temporal table."""
    image_model = GLSCLModel.from_pretrained(knowing_model)
    image_model.config.max_frames = 4
    model = GLSCLModel(image_model.config).eval()
    model.load_state_dict(image_model.state_dict(), strict=False)
    with torch.no_grad():
        model.temporal_embedding.copy_(torch.randn(4, model.config.vision_config.hidden_size) / 7)
    return save_model(model, tokenizer, tmp_path_factory.mktemp("video"))


def rewritten(clips: Path, out: Path, change) -> Path:
    store = Store([Manifest.load(clips)])
    members = [store.members(0, i, MEMBERS["video"]) for i in range(VIDEOS)]
    write_shards(
        out, [(f"{i:03d}", m) for i, m in enumerate(change(members))], source={"name": "clips"}
    )
    return out


def test_videos_are_ranked_in_both_directions(
    video_model: Path, clips: Path, tmp_path: Path
) -> None:
    result = evaluate(video_model, clips, tmp_path, rerank_k=3)
    assert result.stage == "video-retrieval"
    assert (result.data["videos"], result.protocol["frames"]) == (VIDEOS, 4)
    assert result.metric("text_to_video/R@1").chance == pytest.approx(100 / VIDEOS)
    assert result.metric("video_to_text/reranked/R@5").n == VIDEOS
    assert metrics(read_records(tmp_path)) == result.metrics
    single_frame = evaluate(video_model, clips, tmp_path / "one", frames=1)
    name = "text_to_video/mAP"
    assert single_frame.metric(name).value != result.metric(name).value


def test_pairs_of_videos_score_as_the_plain_model_scores_them(
    video_model: Path, clips: Path
) -> None:
    loaded = load(video_model)
    images = encode_images(loaded, Manifest.load(clips), frames=3)
    texts = encode_texts(loaded, [several[0] for several in images.captions])
    image, text = np.divmod(np.arange(VIDEOS * VIDEOS), VIDEOS)
    margins = match_margins(loaded, images, texts, image, text)
    rows = texts.row[text]
    with torch.inference_mode():
        fused = loaded.model.fuse(
            texts.tokens[rows], texts.mask[rows], images.tokens[image], frames=3
        )
        logits = loaded.model.match(fused.pooled)
    np.testing.assert_allclose(margins, (logits[:, 1] - logits[:, 0]).numpy(), atol=2e-5)


def test_an_unreadable_video_is_listed_and_counts_as_missed(
    video_model: Path, clips: Path, tmp_path: Path
) -> None:
    def break_one(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        broken = members[2] | {"mp4": members[2]["mp4"][:100]}
        return [*members[:2], broken, *members[3:]]

    broken = rewritten(clips, tmp_path / "broken", break_one)
    for name in ("first", "from the cache"):
        result = evaluate(
            video_model, broken, tmp_path / name, rerank_k=2, cache=tmp_path / "cache"
        )
        ((key, problem),) = result.data["unreadable"].items()
        assert "unreadable_images" in result.flags
        assert key.endswith("/002") and "cannot be evaluated" in problem
        lines = [line for line in read_records(tmp_path / name) if line["image"] == key]
        assert len(lines) == 1 + len({line["query"] for line in lines} - {key})
        assert result.metric("video_to_text/R@1").n == VIDEOS
        assert result.data["videos"] == VIDEOS - 1
        assert metrics(lines)[0].value == 0.0
        for line in read_records(tmp_path / name):
            for candidate, _ in line["contrastive"]["top"]:
                assert candidate.partition("#")[0] != key
        assert metrics(read_records(tmp_path / name)) == result.metrics
        for metric in result.metrics:
            if metric.name == "video_to_text/R@10":
                assert metric.bounds is not None and metric.bounds[1] == pytest.approx(
                    100 * (VIDEOS - 1) / VIDEOS
                )
    damaged = rewritten(clips, tmp_path / "damaged", lambda members: members)
    shard = next(damaged.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[content.find(b"mdat") + 100] ^= 1
    shard.write_bytes(content)
    # The shard is to blame, not the video: that is not a miss, and can be mended.
    with pytest.raises(DataError):
        evaluate(video_model, damaged, tmp_path / "no", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be evaluated"):
        encode_images(load(video_model, cache=tmp_path / "cache"), Manifest.load(broken), frames=4)


def test_a_video_of_one_frame_repeats_it(video_model: Path, clips: Path, tmp_path: Path) -> None:
    still = np.full((1, 48, 48, 3), (200, 30, 90), dtype=np.uint8)

    def short(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        shortened = []
        for frames, video in zip((1, 2), members[:2], strict=True):
            media = encode_clip(still.repeat(frames, 0), frames_per_second=8, crf=20)
            shortened.append(video | {"mp4": media})
        return [*shortened, *members[2:]]

    data = rewritten(clips, tmp_path / "short", short)
    assert evaluate(video_model, data, tmp_path / "o").data["unreadable"] == {}
    images = encode_images(load(video_model), Manifest.load(data), frames=4)
    np.testing.assert_allclose(images.features[0], images.features[1], atol=0.05)
    assert images.tokens.shape[1] == 4 + 4 * 9


def test_captions_belong_to_the_video_of_their_sample(
    video_model: Path, clips: Path, tmp_path: Path
) -> None:
    """The order of samples does not matter, nor how many captions each has."""

    def several(members: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        videos = []
        for i, video in enumerate(members):
            captions = json.loads(video["json"])["captions"][: 1 + i % 3]
            annotations = json.dumps({"captions": captions}).encode()
            videos.append({"mp4": video["mp4"], "json": annotations})
        return videos

    straight = evaluate(video_model, rewritten(clips, tmp_path / "s", several), tmp_path / "so")
    turned = rewritten(clips, tmp_path / "t", lambda members: several(members)[::-1])
    reversed_ = evaluate(video_model, turned, tmp_path / "to")
    assert straight.data["texts"] == 12
    for left, right in zip(straight.metrics, reversed_.metrics, strict=True):
        assert (left.name, left.n) == (right.name, right.n)
        assert left.value == pytest.approx(right.value, abs=1e-9)


def test_a_model_of_images_and_data_of_images_are_refused(
    knowing_model: Path, video_model: Path, clips: Path, gallery: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at most 0 frames"):
        evaluate(knowing_model, clips, tmp_path)
    with pytest.raises(UsageError, match="at most 4 frames"):
        evaluate(video_model, clips, tmp_path, frames=5)
    with pytest.raises(DataError, match="holds no videos"):
        evaluate(video_model, gallery, tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        retrieval.evaluate(video_model, clips, tmp_path)

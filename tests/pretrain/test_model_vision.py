"""Images and videos in the image tower: attention, positions, dropped and masked patches."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionModel

from pretrain.model import GLSCLModel
from pretrain.model.attention import frame_attention
from pretrain.model.vision import Patches
from tests.pretrain.models import VISION, WIDTH, tiny_model


def masked_attention(query, key, value, frames):
    """Attend with a dense mask; tokens are frame by frame, with the class token first in each."""
    tokens = query.shape[-2]
    frame = torch.arange(tokens) // (tokens // frames)
    first = torch.arange(tokens) % (tokens // frames) == 0
    allowed = first[:, None] | (frame[:, None] == frame)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**20))
def test_video_attention_equals_masked_dense_attention_in_values_and_gradients(
    frames, patches, batch, seed
):
    torch.manual_seed(seed)
    shape = (3, batch, frames * (1 + patches), 2, 4)
    flat = [tensor.requires_grad_() for tensor in torch.randn(shape, dtype=torch.float64)]
    transposed = [tensor.transpose(1, 2) for tensor in flat]
    expected = masked_attention(*transposed, frames).transpose(1, 2)
    by_frame = [tensor.unflatten(1, (frames, -1)).transpose(1, 2) for tensor in flat]
    ours, _ = frame_attention(None, *by_frame, None)
    torch.testing.assert_close(ours.flatten(1, 2), expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * weight).sum(), flat)
    gradients = torch.autograd.grad((ours.flatten(1, 2) * weight).sum(), flat)
    for gradient, reference in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=0)


def test_the_two_calls_for_one_frame_agree_with_the_plain_call():
    projections = torch.randn(3, 2, 1, 10, 2, 16).unbind()
    video, _ = frame_attention(None, *[tensor.transpose(1, 2) for tensor in projections], None)
    of_frame = [tensor[:, 0].transpose(1, 2) for tensor in projections]
    plain = F.scaled_dot_product_attention(*of_frame)
    torch.testing.assert_close(video[:, 0], plain.transpose(1, 2), atol=1e-6, rtol=0)


def test_class_tokens_see_all_frames_and_patches_only_their_own():
    model = tiny_model(vision_config=VISION.to_dict() | {"num_hidden_layers": 1})
    patches = model.embed_patches(torch.randn(1, 3, 3, 24, 24).double())
    values = patches.values.detach().requires_grad_()
    tokens = model.encode_patches(Patches(values, patches.positions))
    assert tokens.shape == (1, 3 + 3 * 9, WIDTH)

    def frames_seen(token):
        [gradient] = torch.autograd.grad(tokens[0, token].sum(), values, retain_graph=True)
        return gradient[0].abs().amax((1, 2)) > 0

    assert all(frames_seen(frame).all() for frame in range(3))
    for token in range(3, 30):
        assert frames_seen(token).tolist() == [frame == (token - 3) // 9 for frame in range(3)]


def test_an_image_uses_no_temporal_embedding_and_equals_stock_clip():
    model = tiny_model()
    stock = CLIPVisionModel(VISION).double().eval()
    stock.load_state_dict(model.vision.state_dict())
    pixels = torch.randn(2, 3, 24, 24).double()
    states = stock.post_layernorm(stock(pixels).last_hidden_state)
    torch.testing.assert_close(
        model.encode_image(pixels), model.image_projection(states), atol=1e-12, rtol=0
    )
    model.temporal_embedding.requires_grad_()
    model.encode_image(pixels).sum().backward()
    assert model.temporal_embedding.grad is None


def test_a_video_of_one_frame_is_an_image_plus_the_first_temporal_embedding():
    model = tiny_model()
    pixels = torch.randn(2, 3, 24, 24).double()
    assert not torch.allclose(model.encode_image(pixels[:, None]), model.encode_image(pixels))
    torch.nn.init.zeros_(model.temporal_embedding)
    torch.testing.assert_close(
        model.encode_image(pixels[:, None]), model.encode_image(pixels), atol=1e-12, rtol=0
    )


def test_bytes_of_images_and_videos_are_normalized_in_the_same_way():
    model = tiny_model(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    video = torch.randint(0, 256, (2, 3, 24, 16, 3), dtype=torch.uint8)
    expected = (video[1, 2, :, :, 1].double() / 255 - 0.2) / 0.6
    torch.testing.assert_close(model.normalize(video)[1, 2, 1], expected, atol=1e-7, rtol=0)
    assert torch.equal(model.normalize(video)[:, 1], model.normalize(video[:, 1]))


def test_patches_are_dropped_in_every_frame_and_have_no_effect():
    model = tiny_model()
    pixels, keep = torch.randn(2, 3, 3, 24, 24).double(), torch.tensor([[0, 4, 8], [1, 2, 3]])
    tokens = model.encode_image(pixels, keep_patches=keep)
    assert tokens.shape == (2, 3 + 3 * 3, WIDTH)
    changed = pixels.clone()
    # Patch 1 of every frame is dropped in the first video and kept in the second.
    changed[0, :, :, :8, 8:16] += 1
    changed[1, :, :, :8, 8:16] += 1
    other = model.encode_image(changed, keep_patches=keep)
    assert torch.equal(other[0], tokens[0]) and not torch.allclose(other[1], tokens[1])
    everything = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(
        model.encode_image(pixels, everything), model.encode_image(pixels), atol=1e-12, rtol=0
    )


def test_patches_are_masked_in_every_frame_and_keep_their_positions():
    model = tiny_model()
    pixels, masked = torch.randn(2, 3, 3, 24, 24).double(), torch.zeros(2, 9, dtype=torch.bool)
    masked[0, 1] = masked[1, 4] = True
    patches = model.mask_patches(model.embed_patches(pixels), masked)
    assert (patches.values[0, :, 1] == model.visual_mask_token).all()
    assert (patches.values[0, :, 4] != model.visual_mask_token).all()
    moved = model.mask_patches(model.embed_patches(pixels), masked.roll(1, dims=1))
    tokens = model.encode_patches(patches)[0, 3 + 1]
    elsewhere = model.encode_patches(moved)[0, 3 + 2]
    assert not torch.allclose(tokens, elsewhere)


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 3, 3, 24, 24)])
def test_class_tokens_computed_alone_equal_those_of_all_tokens(shape):
    model = tiny_model()
    pixels, keep = torch.randn(shape).double(), torch.tensor([[0, 4, 8], [1, 2, 3]])
    frames = shape[1] if len(shape) == 5 else 1
    tokens = model.encode_image(pixels, keep)
    first = model.encode_image(pixels, keep, need="first")
    torch.testing.assert_close(first, tokens[:, :frames], atol=1e-12, rtol=0)
    gradients = []
    for states in (tokens[:, :frames], first):
        model.zero_grad()
        states.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)


def test_positions_of_other_image_sizes_are_interpolated_as_in_clip():
    model = tiny_model()
    for height, width in ((48, 24), (16, 40), (8, 72)):  # the last has as many patches as the table
        pixels = torch.randn(1, 3, height, width).double()
        stock = model.vision(pixels, interpolate_pos_encoding=True).last_hidden_state
        expected = model.image_projection(model.vision.post_layernorm(stock))
        torch.testing.assert_close(model.encode_image(pixels), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        (
            (1, 3, 24, 20),
            {},
            "24 x 20 pixels cannot be cut into patches of 8 x 8: resize them, .* 24 x 16",
        ),
        ((1, 9, 3, 24, 24), {}, "9 frames is longer than the temporal table of 8"),
        ((1, 2, 3, 24, 24), {"max_frames": 0}, "images only"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_advice(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**fields).encode_image(torch.randn(shape).double())


def test_a_model_saved_without_a_temporal_table_loads_without_one(tmp_path):
    tiny_model(max_frames=0).float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("max_frames")  # version 0.1 did not write it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert GLSCLModel.from_pretrained(tmp_path).temporal_embedding is None


def test_videos_are_refused_with_another_attention(tmp_path):
    tiny_model().float().save_pretrained(tmp_path)
    model = type(tiny_model()).from_pretrained(tmp_path, attn_implementation="eager")
    sdpa = type(model).from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(
        model.encode_image(pixels), sdpa.encode_image(pixels), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="videos need the attention"):
        model.encode_image(pixels[:, None].expand(-1, 2, -1, -1, -1))


def test_a_saved_model_names_no_private_attention_and_computes_the_same(tmp_path):
    model = tiny_model().float()
    model.save_pretrained(tmp_path)
    assert "glscl_frames" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    video = torch.randn(2, 3, 3, 24, 24)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode_image(video), model.encode_image(video))

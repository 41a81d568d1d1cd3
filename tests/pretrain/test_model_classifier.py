"""The classifier of fine-tuned models, for a text with one or two images."""

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import GLSCLModel
from tests.pretrain.models import WIDTH, texts, tiny_config, tiny_model

LABELS = ("no", "two", "yes")


def test_logits_are_those_of_the_published_head():
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    pooled = torch.randn(4, 4 * WIDTH).double()
    first, norm, _, last = model.classifier
    hidden = F.layer_norm(first(pooled), (2 * WIDTH,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(
        model.classify(pooled), F.linear(F.gelu(hidden), last.weight, last.bias)
    )
    assert model.classify(pooled).shape == (4, 3)


def test_the_second_image_differs_from_the_first_only_by_its_token_type():
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    tokens = torch.randn(2, 10, WIDTH).double()
    first, second = model.image_side(tokens), model.image_side(tokens, second=True)
    difference = (model.token_type.weight[2] - model.token_type.weight[1]).expand_as(tokens)
    torch.testing.assert_close(second.tokens - first.tokens, difference)
    assert not torch.equal(second.attended, first.attended)


def test_a_classifier_is_saved_and_loaded_with_its_labels(tmp_path):
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    model.save_pretrained(tmp_path)
    loaded, loading = GLSCLModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert list(loaded.config.classifier_labels) == list(LABELS)
    pooled = torch.randn(4, 4 * WIDTH).double()
    assert torch.equal(loaded.classify(pooled), model.classify(pooled))


def test_a_model_without_a_classifier_refuses_to_classify_and_has_no_such_weights():
    model = tiny_model()
    assert len(model.token_type.weight) == 2
    assert not any(name.startswith("classifier") for name in model.state_dict())
    with pytest.raises(
        ValueError, match="no classifier: its configuration has no classifier_labels"
    ):
        model.classify(torch.randn(1, 2 * WIDTH).double())
    ids, mask = texts(1)
    tokens = model.encode_text(ids, mask)
    with pytest.raises(ValueError, match="takes no second image"):
        model.image_side(tokens, second=True)


def test_pairs_with_two_images_are_pooled_side_by_side():
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    ids, mask = texts(3)
    text = model.text_side(model.encode_text(ids, mask), mask)
    images = []
    for second in (False, True):
        tokens = model.encode_image(torch.randn(3, 3, 24, 24).double())
        images.append(model.image_side(tokens, second))
    expected = []
    for image in images:
        [(text_states, image_states)] = model.fuse_pairs(text, mask, image, [("all", "all")])
        expected.append(model.pool(text_states, image_states[:, :1]))
    pooled = model.pool_with_images(text, mask, images)
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier_labels": ("yes", "yes")}, "must differ"),
        ({"classifier_images": 3}, "must be 1 or 2"),
    ],
)
def test_impossible_classifiers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)

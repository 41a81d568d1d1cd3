"""The classifier of fine-tuned models: one or two pictures with a text, and models that have none."""

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


def test_the_second_picture_differs_from_the_first_by_its_token_type_alone():
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    tokens = torch.randn(2, 10, WIDTH).double()
    first, second = model.image_side(tokens), model.image_side(tokens, second=True)
    difference = (model.token_type.weight[2] - model.token_type.weight[1]).expand_as(tokens)
    torch.testing.assert_close(second.tokens - first.tokens, difference)
    assert not torch.equal(second.attended, first.attended)


def test_a_classifier_is_saved_and_loaded_with_its_labels(tmp_path):
    model = tiny_model(classifier_labels=LABELS, classifier_images=2)
    model.save_pretrained(tmp_path)
    loaded, found = GLSCLModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert list(loaded.config.classifier_labels) == list(LABELS)
    pooled = torch.randn(4, 4 * WIDTH).double()
    assert torch.equal(loaded.classify(pooled), model.classify(pooled))


def test_a_model_without_a_classifier_says_so_and_has_the_weights_it_always_had():
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier_labels": ("yes", "yes")}, "must differ"),
        ({"classifier_images": 3}, "must be 1 or 2"),
    ],
)
def test_classifiers_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)

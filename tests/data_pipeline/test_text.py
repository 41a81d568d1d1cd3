"""Tokenizers: trained here, or from any Hugging Face folder."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from data_pipeline.errors import DataError, UsageError
from data_pipeline.text import Tokenizer, train_tokenizer

TEXTS = [
    "a large striped circle stands left of a small green square",
    "the star, isn't it?  two  spaces",
    " leading space",
    "Ünïcode 数字 12345 \n newline",
    "a <mask> here",
    "",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 320)


def test_training_gives_the_special_tokens_of_roberta(trained):
    assert (trained.cls_id, trained.pad_id, trained.sep_id, trained.mask_id) == (
        0,
        1,
        2,
        trained.vocab_size - 1,
    )
    assert trained.vocab_size <= 320
    assert not {0, 1, 2, 3, trained.mask_id} & set(trained.ordinary_ids.tolist())


def test_transformers_reads_a_saved_tokenizer_with_the_same_ids_and_words(trained, tmp_path):
    trained.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__.startswith("Roberta")
    assert (theirs.mask_token_id, theirs.pad_token_id, len(theirs)) == (
        trained.mask_id,
        1,
        trained.vocab_size,
    )
    for length in (50, 8):
        for text, ours in zip(TEXTS, trained.encode(TEXTS, length), strict=True):
            encoded = theirs(text, truncation=True, max_length=length)
            assert ours.ids == encoded.input_ids
            assert ours.words == encoded.word_ids(0)


def test_a_tokenizer_survives_transformers_and_other_processes(trained, tmp_path):
    trained.save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    for copy in (Tokenizer.load(tmp_path / "theirs"), Tokenizer.from_str(trained.to_str())):
        assert copy.encode(TEXTS, 50) == trained.encode(TEXTS, 50)
        assert copy.ordinary_ids.tolist() == trained.ordinary_ids.tolist()


def test_training_is_the_same_in_every_process(trained):
    code = (
        "import sys, json, hashlib; from data_pipeline.text import Tokenizer; "
        "trained = Tokenizer.train(json.loads(sys.argv[1]), 320).to_str(); "
        "print(hashlib.sha256(trained.encode()).hexdigest())"
    )
    run = [sys.executable, "-c", code, json.dumps(TEXTS * 3)]
    first = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    second = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert first == second


def test_a_bert_folder_is_read_too(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##dish", "star"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(["a reddish star"], 50)[0].ids == [2, 5, 6, 7, 8, 3]
    assert loaded.encode(["a reddish star"], 50)[0].words == [None, 0, 1, 1, 2, None]
    assert (loaded.pad_id, loaded.mask_id) == (0, 4)


def test_a_tokenizer_without_a_mask_token_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text().replace("<mask>", "<other>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="no mask token"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(UsageError, match="at least 261"):
        Tokenizer.train(TEXTS, 200)


def test_a_tokenizer_is_trained_on_the_captions_of_data_sets(images, tmp_path):
    trained = train_tokenizer([images.root], tmp_path, 400)
    assert Tokenizer.load(tmp_path).to_str() == trained.to_str()
    assert (
        len(trained.encode(["large"], 50)[0].ids) == 3
        or len(trained.encode([" large"], 50)[0].ids) == 3
    )

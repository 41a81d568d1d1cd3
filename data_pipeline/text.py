"""Text to token ids: any Hugging Face tokenizer folder, or a byte-level BPE trained on captions.

In: texts. Out: token ids and, for each token, the word that it belongs to, because whole words are
masked together. Worker processes import this module, so it does not import transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.sample import BadSample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store

ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_ROLES = ("cls", "sep", "pad", "mask")
_SPECIAL = len(ROBERTA)


@dataclass(frozen=True)
class Encoding:
    """One text: token ids, special ones included, and the number of each token's word.

    Special tokens belong to no word (None).
    """

    ids: list[int]
    words: list[int | None]


class Tokenizer:
    """A tokenizer with the four special tokens that training needs, light enough for workers."""

    def __init__(self, backend: tokenizers.Tokenizer, special: dict[str, str]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `special` names its cls, sep, pad and mask token.

        Raises DataError when one of them is missing from the vocabulary.
        """
        ids = {}
        for role in _ROLES:
            token = special.get(role)
            number = backend.token_to_id(token) if token else None
            if number is not None:
                ids[role] = number
        missing = [role for role in _ROLES if role not in ids]
        if missing:
            raise DataError(
                f"the tokenizer has no {', '.join(missing)} token: "
                "masked language modeling needs them"
            )
        self._backend = backend
        self._special = {role: special[role] for role in _ROLES}
        # The files of a tokenizer may switch both on, but batches are padded in `collate`.
        self._backend.no_padding()
        self._backend.no_truncation()
        self.cls_id, self.sep_id, self.pad_id, self.mask_id = (ids[role] for role in _ROLES)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        special_ids = set(ids.values())
        for number, added in backend.get_added_tokens_decoder().items():
            if added.special:
                special_ids.add(number)
        # The ids that may replace a masked token.
        ordinary = [number for number in range(self.vocab_size) if number not in special_ids]
        self.ordinary_ids = np.array(ordinary, dtype=np.int64)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load a folder with tokenizer.json, or any fast tokenizer that AutoTokenizer loads.

        Raises DataError when nothing usable is there.
        """
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            return cls._load_with_transformers(str(folder))
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file} is not a tokenizer: {error}") from error
        return cls(backend, _special_tokens(file.parent, backend))

    @classmethod
    def _load_with_transformers(cls, name: str) -> Tokenizer:
        from transformers import AutoTokenizer  # slow to import, and only some folders need it

        try:
            loaded = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise DataError(f"no tokenizer at {name}: {str(error).splitlines()[0]}") from error
        if not loaded.is_fast:
            raise DataError(
                f"the tokenizer at {name} has no fast version, which is needed to find words"
            )
        special = {role: getattr(loaded, f"{role}_token") for role in _ROLES}
        return cls(loaded.backend_tokenizer, special)

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Tell whether every token has the same id in both.

        Other contents of the files may differ, because libraries change them when they save again.
        """
        same_ids = bool(self._backend.get_vocab(True) == other._backend.get_vocab(True))
        return same_ids and self._special == other._special

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE with RoBERTa's special tokens.

        Their ids are <s> 0, <pad> 1, </s> 2, <unk> 3, and <mask> last. The vocabulary is smaller
        than `vocab_size` if the captions give fewer merges. Raises UsageError for a size without
        room for bytes and special tokens.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if vocab_size < len(alphabet) + _SPECIAL:
            raise UsageError(
                f"a vocabulary needs at least {len(alphabet) + _SPECIAL} entries, not {vocab_size}"
            )
        backend = tokenizers.Tokenizer(models.BPE(unk_token=ROBERTA["unk"]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            # One entry is left for <mask>, which RoBERTa has last.
            vocab_size=vocab_size - 1,
            special_tokens=[_added(ROBERTA[role]) for role in ("cls", "pad", "sep", "unk")],
            # All bytes, so that no text is ever unknown.
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        backend.add_special_tokens([_added(ROBERTA["mask"])])
        # The trainer gave the first ids to its special tokens, in their order.
        sep, cls_token = (ROBERTA["sep"], 2), (ROBERTA["cls"], 0)
        backend.post_processor = processors.RobertaProcessing(
            sep, cls_token, trim_offsets=True, add_prefix_space=False
        )
        return cls(backend, ROBERTA)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `transformers.AutoTokenizer` loads.

        It loads as a RoBERTa tokenizer if the special tokens are RoBERTa's.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokens = {f"{role}_token": token for role, token in self._special.items()}
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            **tokens,
        }
        if all(ROBERTA[role] == token for role, token in self._special.items()):
            roberta = {
                "bos_token": ROBERTA["cls"],
                "eos_token": ROBERTA["sep"],
                "unk_token": ROBERTA["unk"],
            }
            config |= {
                "tokenizer_class": "RobertaTokenizer",
                "add_prefix_space": False,
                "trim_offsets": True,
                **roberta,
            }
        write_whole(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_whole(
            folder / "tokenizer_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n"
        )

    def encode(self, texts: Sequence[str], max_length: int) -> list[Encoding]:
        """Encode texts, cut to `max_length` tokens with the special tokens kept."""
        self._backend.enable_truncation(max_length)
        encodings = self._backend.encode_batch(list(texts))  # encode_batch_fast loses the words
        return [Encoding(encoding.ids, encoding.word_ids) for encoding in encodings]

    def offsets(self, text: str, max_length: int) -> list[tuple[int, int]]:
        """Return the characters (first, last + 1) of each token; (0, 0) for special tokens."""
        self._backend.enable_truncation(max_length)
        offsets: list[tuple[int, int]] = self._backend.encode(text).offsets
        return offsets

    def to_str(self) -> str:
        """Return everything about the tokenizer as one JSON string, the same for equal tokenizers.

        It is for another process, and for the hash in the state of a run.
        """
        self._backend.no_truncation()  # the last max_length is not part of the tokenizer
        return json.dumps({"tokenizer": self._backend.to_str(), "special": self._special})

    @classmethod
    def from_str(cls, text: str) -> Tokenizer:
        """Rebuild what `to_str` wrote."""
        stored = json.loads(text)
        return cls(tokenizers.Tokenizer.from_str(stored["tokenizer"]), stored["special"])


def train_tokenizer(dirs: Sequence[str | Path], out: str | Path, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on every caption of data sets and save it to `out`; decodes no image.

    Raises DataError when there is no caption.
    """
    manifests = [Manifest.load(Path(folder)) for folder in dirs]
    # The trainer would return a useless vocabulary without an error.
    if next(captions_of(manifests), None) is None:
        raise DataError(
            f"no captions in {', '.join(map(str, dirs))}: nothing to train a tokenizer on"
        )
    tokenizer = Tokenizer.train(captions_of(manifests), vocab_size)
    tokenizer.save(out)
    return tokenizer


def captions_of(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield every caption of the data sets in order; samples that cannot be read are skipped."""
    store = Store(manifests)
    try:
        for source, manifest in enumerate(manifests):
            for sample in range(manifest.samples):
                try:
                    yield from store.captions(source, sample)
                except BadSample:
                    continue
    finally:
        store.close()


def _added(token: str) -> AddedToken:
    # RoBERTa's <mask> takes the space before it, so that a masked word looks like a word.
    return AddedToken(token, special=True, normalized=False, lstrip=token == ROBERTA["mask"])


def _special_tokens(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Return the special token of each role.

    The folder's configuration names them; otherwise RoBERTa's and BERT's customary names are used.
    """
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            stored = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{folder / name} is not JSON: {error}") from error
        for role in _ROLES:
            token = stored.get(f"{role}_token")
            if isinstance(token, dict):  # newer files describe tokens with their options
                token = token.get("content")
            if token:
                named[role] = token
    for role in _ROLES:
        for customary in (ROBERTA[role], f"[{role.upper()}]"):
            if role not in named and backend.token_to_id(customary) is not None:
                named[role] = customary
    return named

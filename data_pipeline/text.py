"""Text to token ids: any Hugging Face tokenizer folder, or a byte-level BPE trained on the captions.

In come captions, out go ids and the word that each token belongs to (whole words are masked
together).
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
    """One text: token ids with the special tokens, and for each the number of its word (None for special tokens)."""

    ids: list[int]
    words: list[int | None]


class Tokenizer:
    """A tokenizer with the four special tokens that training needs, light enough for worker processes."""

    def __init__(self, backend: tokenizers.Tokenizer, special: dict[str, str]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `special` names its cls, sep, pad and mask token.

        Raises DataError when one of them is missing from the vocabulary.
        """
        found = {
            role: backend.token_to_id(special[role]) if special.get(role) else None
            for role in _ROLES
        }
        ids = {role: number for role, number in found.items() if number is not None}
        missing = [role for role in _ROLES if role not in ids]
        if missing:
            raise DataError(
                f"the tokenizer has no {', '.join(missing)} token: masked language modelling needs them"
            )
        self._backend = backend
        self._special = {role: special[role] for role in _ROLES}
        self._backend.no_padding()
        self._backend.no_truncation()
        self.cls_id, self.sep_id, self.pad_id, self.mask_id = (ids[role] for role in _ROLES)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        special_ids = {number for number, token in added.items() if token.special} | set(
            ids.values()
        )
        self.ordinary_ids = np.array(
            [n for n in range(self.vocab_size) if n not in special_ids], dtype=np.int64
        )

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load a folder with tokenizer.json, or anything that transformers' AutoTokenizer loads as a fast tokenizer.

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
                f"the tokenizer at {name} has no fast version, without which words are not known"
            )
        return cls(
            loaded.backend_tokenizer, {role: getattr(loaded, f"{role}_token") for role in _ROLES}
        )

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Whether every token has the same id; what else a file says may change when it is written again."""
        return (
            bool(self._backend.get_vocab(True) == other._backend.get_vocab(True))
            and self._special == other._special
        )

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE with RoBERTa's special tokens: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last.

        The vocabulary is smaller than `vocab_size` when the captions hold fewer merges. Raises
        UsageError for a size that leaves no room for bytes and special tokens.
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
            vocab_size=vocab_size - 1,
            special_tokens=[_added(ROBERTA[role]) for role in ("cls", "pad", "sep", "unk")],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        backend.add_special_tokens([_added(ROBERTA["mask"])])
        # The first special tokens get the first ids, in the order they were given in.
        sep, cls_token = (ROBERTA["sep"], 2), (ROBERTA["cls"], 0)
        backend.post_processor = processors.RobertaProcessing(
            sep, cls_token, trim_offsets=True, add_prefix_space=False
        )
        return cls(backend, ROBERTA)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `transformers.AutoTokenizer` loads, as RoBERTa's if the special tokens are RoBERTa's."""
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
        """Token ids of each text, cut to `max_length` with the special tokens kept."""
        self._backend.enable_truncation(max_length)
        encoded = self._backend.encode_batch(list(texts))  # the "fast" variant loses the words
        return [Encoding(one.ids, one.word_ids) for one in encoded]

    def offsets(self, text: str, max_length: int) -> list[tuple[int, int]]:
        """Characters (first, last + 1) that each token of `encode` stands for; (0, 0) for special tokens."""
        self._backend.enable_truncation(max_length)
        offsets: list[tuple[int, int]] = self._backend.encode(text).offsets
        return offsets

    def to_str(self) -> str:
        """Everything about the tokenizer as one JSON string, for another process; equal for equal tokenizers."""
        self._backend.no_truncation()  # what was encoded last is no part of it
        return json.dumps({"tokenizer": self._backend.to_str(), "special": self._special})

    @classmethod
    def from_str(cls, text: str) -> Tokenizer:
        """Rebuild what `to_str` wrote."""
        stored = json.loads(text)
        return cls(tokenizers.Tokenizer.from_str(stored["tokenizer"]), stored["special"])


def train_tokenizer(dirs: Sequence[str | Path], out: str | Path, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on every caption of some data sets and save it to `out`; no image is decoded.

    Raises DataError when there is no caption at all.
    """
    manifests = [Manifest.load(Path(folder)) for folder in dirs]
    if next(captions_of(manifests), None) is None:
        raise DataError(
            f"no captions in {', '.join(map(str, dirs))}: nothing to train a tokenizer on"
        )
    tokenizer = Tokenizer.train(captions_of(manifests), vocab_size)
    tokenizer.save(out)
    return tokenizer


def captions_of(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every caption of the data sets, in their order; samples that cannot be read are passed over."""
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
    """Roles of the special tokens: as the folder's configuration says, else by RoBERTa's and BERT's customary names."""
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
            token = token.get("content") if isinstance(token, dict) else token
            if token:
                named[role] = token
    for role in _ROLES:
        customary = [
            token
            for token in (ROBERTA[role], f"[{role.upper()}]")
            if backend.token_to_id(token) is not None
        ]
        if role not in named and customary:
            named[role] = customary[0]
    return named

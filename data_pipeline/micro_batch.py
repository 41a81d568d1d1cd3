"""Micro-batch number n of a rank as numpy arrays: a pure function of (data, seed, division, n), in any process.

Reads, decodes, crops, tokenises and masks. Imports neither torch nor transformers, because worker
processes import it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.augment import AugmentConfig, write_training_pixels
from data_pipeline.collate import Arrays, collate, identities, matching_arrays, positives
from data_pipeline.decode import Pixels
from data_pipeline.errors import DataError
from data_pipeline.masking import MaskingConfig, draw_masks
from data_pipeline.order import Integers, Words, fold, hash_key
from data_pipeline.positions import Division, open_order
from data_pipeline.quarantine import ATTEMPTS, BadRecord, stand_in
from data_pipeline.questions import QuestionConfig, answered, targets
from data_pipeline.randomness import generator_with_key
from data_pipeline.sample import BadSample, Kind, Sample, Texts
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer

_SAMPLE = 4  # purpose of the key, beside those of order.py and quarantine.py


@dataclass(frozen=True)
class ReaderConfig:
    """Everything that a reader in another process needs; `tokenizer` is `Tokenizer.to_str()`."""

    manifests: tuple[Manifest, ...]
    weights: tuple[float, ...] | None
    seed: int
    lanes: int
    division: Division
    group: int
    tokenizer: str
    size: int
    frames: int | None
    patch_size: int
    max_text_length: int
    masking: MaskingConfig
    augment: AugmentConfig
    dataset_negatives: bool
    local_negatives: int | None
    questions: QuestionConfig | None
    pairs: bool

    @property
    def kind(self) -> Kind:
        """What is read of the samples."""
        return "pair" if self.pairs else "image" if self.frames is None else "video"

    @property
    def texts(self) -> Texts:
        """What the texts are."""
        return "captions" if self.questions is None else "questions"

    @property
    def pixels_shape(self) -> tuple[int, ...]:
        """Shape of a micro-batch's pixels: its samples, then the negatives of its rows with label 0."""
        rows = self.division.micro_batch
        if self.dataset_negatives:
            rows += rows // self.group * (self.group - positives(self.group))
        views = 2 if self.pairs else self.frames
        return (rows, *(() if views is None else (views,)), self.size, self.size, 3)


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch without its pixels: keys really read, arrays as in `Batch`, bad samples met on the way."""

    keys: list[str]
    arrays: Arrays
    bad: list[BadRecord]


@dataclass(frozen=True)
class _Chosen:
    """What was read for a draw: the sample or its stand-in, the text, and the generator for what follows.

    The text is one of the captions, or of the questions, with its answers.
    """

    sample: int
    key: str
    image_id: str
    text: str
    answers: tuple[str, ...]
    random: np.random.Generator


class NothingReadable(DataError):
    """A draw and all its stand-ins were bad; `bad` holds the records."""

    def __init__(self, bad: Sequence[BadRecord]) -> None:
        worst, count = Counter(f"{record.source}/{record.shard}" for record in bad).most_common(1)[
            0
        ]
        super().__init__(
            f"{ATTEMPTS} samples in a row are bad; worst shard {worst} with {count} (the last: {bad[-1].message}): "
            'check it with "glscl data verify --decode"'
        )
        self.bad = list(bad)

    def __reduce__(self) -> tuple[type[NothingReadable], tuple[list[BadRecord]]]:
        # Exceptions travel from workers by their args, which hold only the message.
        return NothingReadable, (self.bad,)


class Reader:
    """Makes any micro-batch of one rank, in any order."""

    def __init__(self, config: ReaderConfig) -> None:
        self._config = config
        self._store = Store(config.manifests)
        self._labels = dict(config.questions.labels) if config.questions else {}
        self._tokenizer = Tokenizer.from_str(config.tokenizer)
        self._order = open_order(
            config.manifests,
            seed=config.seed,
            global_batch=config.division.global_batch,
            lanes=config.lanes,
            weights=config.weights,
        )
        self._keys = np.array(self._order.keys, dtype=np.uint64)
        self._negatives_key = hash_key(config.seed, "negatives")

    def read(self, number: int, pixels: Pixels) -> MicroBatch:
        """Micro-batch `number`, counted from the run's start; its pixels are written to `pixels`, of `pixels_shape`.

        Raises NothingReadable, or DataError for a shard that cannot be read.
        """
        config, division = self._config, self._config.division
        step, part = divmod(number, division.micro_batches)
        where = division.of_micro_batch(part)
        draws = self._order.step(step, division.global_batch)[where]
        bad: list[BadRecord] = []
        words = sample_words(self._keys[draws.source], draws.sample, draws.epoch)
        columns = zip(
            draws.source.tolist(), draws.sample.tolist(), draws.epoch.tolist(), words, strict=True
        )
        chosen = [
            self._read_first_good(*draw, pixels[row], bad) for row, draw in enumerate(columns)
        ]
        patches = (config.size // config.patch_size) ** 2
        texts = [one.text for one in chosen]
        encodings = self._tokenizer.encode(texts, config.max_text_length)
        masks = [
            draw_masks(
                one.random,
                encoding,
                patches,
                self._tokenizer,
                config.masking,
                max_text_length=config.max_text_length,
                local_negatives=config.local_negatives,
            )
            for one, encoding in zip(chosen, encodings, strict=True)
        ]
        arrays = collate(
            encodings,
            masks,
            patches=patches,
            max_length=config.max_text_length,
            tokenizer=self._tokenizer,
        )
        groups = division.micro_batch // config.group
        arrays |= matching_arrays(
            config.seed, step, where.start // config.group, groups, config.group
        )
        names = [config.manifests[source].name for source in draws.source.tolist()]
        arrays |= identities(names, [one.image_id for one in chosen], texts)
        if config.questions is not None:
            arrays["targets"] = np.stack(
                [targets(one.answers, self._labels, config.questions) for one in chosen]
            )
        if config.dataset_negatives:
            unmatched = np.flatnonzero(arrays["itm_labels"] == 0).tolist()
            for out, row in zip(pixels[len(chosen) :], unmatched, strict=True):
                self._read_negative(
                    int(draws.source[row]), chosen[row], step, where.start + row, out, bad
                )
        return MicroBatch([one.key for one in chosen], arrays, bad)

    def close(self) -> None:
        """Close the shards."""
        self._store.close()

    def _read_first_good(
        self, source: int, sample: int, epoch: int, words: Words, out: Pixels, bad: list[BadRecord]
    ) -> _Chosen:
        """Read a sample, or the first of its stand-ins that is good; its view is written to `out`."""
        key, samples = self._order.keys[source], self._store.manifests[source].samples
        failed: list[BadRecord] = []
        candidate = sample
        for attempt in range(ATTEMPTS):
            if attempt:
                candidate = stand_in(key, samples, sample, epoch, attempt)
                words = sample_words(
                    self._keys[[source]], np.array([candidate]), np.array([epoch])
                )[0]
            random = generator_with_key(words)
            try:
                read = self._store.read(source, candidate, self._config.kind, self._config.texts)
                text, answers = _draw_text(read, random, self._config.questions)
                write_training_pixels(read, random, self._config.augment, out)
            except BadSample as error:
                failed.append(self._record(source, candidate, error))
                continue
            bad.extend(failed)
            return _Chosen(candidate, read.key, read.image_id, text, answers, random)
        raise NothingReadable(failed)

    def _read_negative(
        self, source: int, own: _Chosen, step: int, position: int, out: Pixels, bad: list[BadRecord]
    ) -> None:
        """Write a view of a sample of the source with another `image_id`, each as likely as the others, to `out`.

        Depends on (seed, step, position in the global batch) alone, and on `own`, whose negative it
        is.
        """
        others = self._store.manifests[source].samples - 1
        failed: list[BadRecord] = []
        for attempt in range(ATTEMPTS):
            words = fold(self._negatives_key, step, position, attempt, np.arange(2))
            random = generator_with_key(words)
            candidate = int(random.random() * others)
            candidate += candidate >= own.sample
            try:
                read = self._store.read(source, candidate, self._config.kind, self._config.texts)
                if read.image_id == own.image_id:
                    continue
                write_training_pixels(read, random, self._config.augment, out)
            except BadSample as error:
                failed.append(self._record(source, candidate, error))
                continue
            bad.extend(failed)
            return
        if failed:
            raise NothingReadable(failed)
        raise DataError(
            f"{own.key}: no negative in {ATTEMPTS} samples drawn, all have its image_id {own.image_id!r}"
        )

    def _record(self, source: int, sample: int, error: BadSample) -> BadRecord:
        name, shard, key = self._store.name_parts(source, sample)
        return BadRecord(name, shard, key, error.reason, str(error))


def _draw_text(
    read: Sample, random: np.random.Generator, config: QuestionConfig | None
) -> tuple[str, tuple[str, ...]]:
    """One of the captions, or of the questions that have answers, with these."""
    if config is None:
        return read.captions[int(random.random() * len(read.captions))], ()
    questions = answered(read.key, read.questions, config)
    drawn = questions[int(random.random() * len(questions))]
    return drawn.question, drawn.answers


def sample_words(keys: Words, samples: Integers, epochs: Integers) -> Words:
    """Philox keys (samples, 2) of the generators for everything random about each sample.

    In this order: text, crop, mirror, frames, patches, tokens. Keyed by (seed and source, sample,
    epoch) alone. Only the method `random` of the generators is used: Philox's raw stream, which no
    version of numpy has changed.
    """
    return fold(keys[:, None], _SAMPLE, samples[:, None], epochs[:, None], np.arange(2))

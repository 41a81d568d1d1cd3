"""Micro-batch number n of a rank as numpy arrays, the same in any process.

In: a `ReaderConfig` (data, seed, division of the global batch) and n. Out: a `MicroBatch` and its
pixels; samples are read, decoded, cropped, tokenized and masked here. It imports neither torch nor
transformers, because worker processes import it.
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
from data_pipeline.order import Order
from data_pipeline.positions import Division, open_order
from data_pipeline.quarantine import ATTEMPTS, BadRecord, stand_in
from data_pipeline.questions import QuestionConfig, answered, targets
from data_pipeline.randomness import SAMPLE, Integers, Words, fold, generator_with_key, hash_key
from data_pipeline.sample import BadSample, Kind, Sample, Texts
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer


@dataclass(frozen=True)
class ReaderConfig:
    """Everything that a reader in another process needs; `tokenizer` is `Tokenizer.to_str()`.

    The fields are the arguments of `data_pipeline.loader.open_loader`, checked and completed.
    """

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
        """What is read from the samples."""
        if self.pairs:
            return "pair"
        return "image" if self.frames is None else "video"

    @property
    def texts(self) -> Texts:
        """Which texts are read."""
        return "captions" if self.questions is None else "questions"

    @property
    def pixels_shape(self) -> tuple[int, ...]:
        """Shape of a micro-batch's pixels: its samples, then negatives of its rows with label 0."""
        rows = self.division.micro_batch
        if self.dataset_negatives:
            rows += rows // self.group * (self.group - positives(self.group))
        views = 2 if self.pairs else self.frames
        if views is None:
            return (rows, self.size, self.size, 3)
        return (rows, views, self.size, self.size, 3)

    def open_order(self) -> Order:
        """Return the order in which the run reads its samples."""
        return open_order(
            self.manifests,
            seed=self.seed,
            global_batch=self.division.global_batch,
            lanes=self.lanes,
            weights=self.weights,
        )


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch without its pixels.

    `keys` are those of the samples really read, stand-ins included; `arrays` are named as the
    fields of `Batch`; `bad` are the bad samples met on the way.
    """

    keys: list[str]
    arrays: Arrays
    bad: list[BadRecord]


@dataclass(frozen=True)
class _ReadSample:
    """What was read for a draw: the sample or its stand-in, one text, and the sample's generator.

    The text is one of the captions, or one of the questions with its answers. The generator draws
    the masks next.
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
        bad_by_shard = Counter(f"{record.source}/{record.shard}" for record in bad)
        worst, count = bad_by_shard.most_common(1)[0]
        super().__init__(
            f"{ATTEMPTS} samples in a row are bad; worst shard {worst} with {count} "
            f'(the last: {bad[-1].message}): check it with "glscl data verify --decode"'
        )
        self.bad = list(bad)

    def __reduce__(self) -> tuple[type[NothingReadable], tuple[list[BadRecord]]]:
        # Workers pickle exceptions, by default with their args, which hold only the message.
        return NothingReadable, (self.bad,)


class Reader:
    """Makes any micro-batch of one rank, in any order."""

    def __init__(self, config: ReaderConfig) -> None:
        self._config = config
        self._store = Store(config.manifests)
        self._labels = dict(config.questions.labels) if config.questions else {}
        self._tokenizer = Tokenizer.from_str(config.tokenizer)
        self._order = config.open_order()
        self._keys = np.array(self._order.keys, dtype=np.uint64)
        self._negatives_key = hash_key(config.seed, "negatives")

    def read(self, number: int, pixels: Pixels) -> MicroBatch:
        """Read micro-batch `number`, counted from the run's start.

        Its pixels are written to `pixels`, an array of `ReaderConfig.pixels_shape`. Raises
        NothingReadable, or DataError for a shard that cannot be read.
        """
        config, division = self._config, self._config.division
        step, part = divmod(number, division.micro_batches)
        where = division.of_micro_batch(part)
        draws = self._order.step(step, division.global_batch)[where]
        bad: list[BadRecord] = []
        sources = draws.source.tolist()
        words = sample_words(self._keys[draws.source], draws.sample, draws.epoch)
        samples = []
        columns = zip(sources, draws.sample.tolist(), draws.epoch.tolist(), words, strict=True)
        for row, (source, sample, epoch, key) in enumerate(columns):
            samples.append(self._read_first_good(source, sample, epoch, key, pixels[row], bad))
        texts = [sample.text for sample in samples]
        arrays = self._text_and_mask_arrays(samples, texts)
        groups = division.micro_batch // config.group
        first_group = where.start // config.group
        arrays |= matching_arrays(config.seed, step, first_group, groups, config.group)
        names = [config.manifests[source].name for source in sources]
        arrays |= identities(names, [sample.image_id for sample in samples], texts)
        if config.questions is not None:
            rows = [targets(sample.answers, self._labels, config.questions) for sample in samples]
            arrays["targets"] = np.stack(rows)
        if config.dataset_negatives:
            # The rows that matching pairs with another image, in order.
            unmatched = np.flatnonzero(arrays["itm_labels"] == 0).tolist()
            for out, row in zip(pixels[len(samples) :], unmatched, strict=True):
                position = where.start + row
                self._read_negative(sources[row], samples[row], step, position, out, bad)
        return MicroBatch([sample.key for sample in samples], arrays, bad)

    def close(self) -> None:
        """Close the shards."""
        self._store.close()

    def _text_and_mask_arrays(self, samples: Sequence[_ReadSample], texts: list[str]) -> Arrays:
        config = self._config
        patches = (config.size // config.patch_size) ** 2
        encodings = self._tokenizer.encode(texts, config.max_text_length)
        masks = []
        for sample, encoding in zip(samples, encodings, strict=True):
            drawn = draw_masks(
                sample.random,
                encoding,
                patches,
                self._tokenizer,
                config.masking,
                max_text_length=config.max_text_length,
                local_negatives=config.local_negatives,
            )
            masks.append(drawn)
        return collate(
            encodings,
            masks,
            patches=patches,
            max_length=config.max_text_length,
            tokenizer=self._tokenizer,
        )

    def _read_first_good(
        self, source: int, sample: int, epoch: int, words: Words, out: Pixels, bad: list[BadRecord]
    ) -> _ReadSample:
        """Read a sample, or the first of its stand-ins that is good; write its view to `out`."""
        key, samples = self._order.keys[source], self._store.manifests[source].samples
        failed: list[BadRecord] = []
        candidate = sample
        for attempt in range(ATTEMPTS):
            if attempt:
                candidate = stand_in(key, samples, sample, epoch, attempt)
                source_key = self._keys[[source]]
                words = sample_words(source_key, np.array([candidate]), np.array([epoch]))[0]
            random = generator_with_key(words)
            try:
                read = self._store.read(source, candidate, self._config.kind, self._config.texts)
                # Text first, then pixels, then masks: the order of the draws is part of a run.
                text, answers = _draw_text(read, random, self._config.questions)
                write_training_pixels(read, random, self._config.augment, out)
            except BadSample as error:
                failed.append(self._record(source, candidate, error))
                continue
            bad.extend(failed)
            # The bad candidates are recorded on success only: NothingReadable carries them itself.
            return _ReadSample(candidate, read.key, read.image_id, text, answers, random)
        raise NothingReadable(failed)

    def _read_negative(
        self,
        source: int,
        matched: _ReadSample,
        step: int,
        position: int,
        out: Pixels,
        bad: list[BadRecord],
    ) -> None:
        """Write a view of a sample of the same source with another `image_id` to `out`.

        All such samples are equally likely. The choice depends only on (seed, step, position in the
        global batch) and on the sample `matched`, for which it is the negative.
        """
        others = self._store.manifests[source].samples - 1
        failed: list[BadRecord] = []
        for attempt in range(ATTEMPTS):
            words = fold(self._negatives_key, step, position, attempt, np.arange(2))
            random = generator_with_key(words)
            candidate = int(random.random() * others)
            candidate += candidate >= matched.sample  # skip the sample itself
            try:
                read = self._store.read(source, candidate, self._config.kind, self._config.texts)
                # Another caption of the same image would be a false negative.
                if read.image_id == matched.image_id:
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
            f"{matched.key}: found no negative in {ATTEMPTS} samples, "
            f"because all of them have its image_id {matched.image_id!r}"
        )

    def _record(self, source: int, sample: int, error: BadSample) -> BadRecord:
        name, shard, key = self._store.name_parts(source, sample)
        return BadRecord(name, shard, key, error.reason, str(error))


def _draw_text(
    read: Sample, random: np.random.Generator, config: QuestionConfig | None
) -> tuple[str, tuple[str, ...]]:
    """Draw one of the captions, or one of the answered questions together with its answers."""
    if config is None:
        return read.captions[int(random.random() * len(read.captions))], ()
    questions = answered(read.key, read.questions, config)
    drawn = questions[int(random.random() * len(questions))]
    return drawn.question, drawn.answers


def sample_words(keys: Words, samples: Integers, epochs: Integers) -> Words:
    """Return the Philox keys (samples, 2) of the generators for everything random about samples.

    A generator draws text, crop, mirroring, frames, patches and tokens, in this order. Its key
    depends only on (seed and source, sample, epoch).
    """
    # Only the method `random` of these generators is used: it is Philox's raw stream, which no
    # version of numpy has changed.
    return fold(keys[:, None], SAMPLE, samples[:, None], epochs[:, None], np.arange(2))

"""Run a stage: everything that all stages do around their own measurement happens here, once.

In: the options of a stage. Out: `result.json` and `samples.jsonl` in the output folder. The stage
itself only measures: it returns records, and what its protocol, data and model were.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results.options import StageOptions, build_options, describe

if TYPE_CHECKING:  # these import torch, which a stage's options need not wait for
    from eval.results.schema import Metric, Result


FEW_CLUSTERS = 20
"""With fewer resampled units a bootstrap interval is too narrow to be believed."""


@dataclass
class Measured:
    """What a stage measured; `run` adds what all results have."""

    records: Sequence[Mapping[str, Any]]
    """One per query, enough to compute every metric again."""
    protocol: dict[str, Any]
    """How it was measured; results are compared only if this agrees."""
    model: dict[str, Any]
    """What was measured: name or path, and hash (None for a baseline without a model)."""
    data: dict[str, Any] = field(default_factory=dict)
    """Facts about the data in addition to path, name, hash and overlap."""
    flags: list[str] = field(default_factory=list)
    """What a reader must know before believing the numbers."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds or rates by name; the total is added."""
    device: str = "cpu"
    metrics: list[Metric] | None = None
    """Metrics of the records where the stage has computed them already."""
    stage: str | None = None
    """Name that the result carries, where it is another stage's (a baseline of that stage)."""
    write_more: Callable[[Path], None] | None = None
    """Writes further files into the output folder, on the main process alone."""


def evaluator(options: type[StageOptions]) -> Callable[..., Result]:
    """Make the function `evaluate` of a stage; its signature is that of the options.

    `evaluate(model, data, out, **options)` measures, writes both files and returns the result.
    """

    def evaluate(*args: Any, **values: Any) -> Result:
        given = signature.bind(*args, **values).arguments
        return run(build_options(options, given))

    parameters = []
    for described in describe(options):
        by_position = described.name in options.positional
        parameters.append(
            inspect.Parameter(
                described.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if by_position
                else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if described.required else described.default,
            )
        )
    signature = inspect.Signature(parameters)
    evaluate.__signature__ = signature  # type: ignore[attr-defined]
    evaluate.__doc__ = f"Evaluate: {options.about}; options are the fields of `Options`."
    return evaluate


def run(options: StageOptions) -> Result:
    """Measure with the options of a stage, write its result and return it.

    Under `accelerate launch` every process measures its share; the main one writes.

    Raises
    ------
    UsageError
        If the output folder cannot be written to or holds a result, or an option makes no sense.
    DataError
        If the data set is missing, damaged or does not fit the stage.
    NumericsError
        If a feature or score is not finite.
    """
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import processes
    from eval.registry import stage_module
    from eval.results.contamination import flags as overlap_flags
    from eval.results.contamination import overlap
    from eval.results.schema import (
        Result,
        check_out,
        data_flags,
        data_hash,
        environment,
        write_result,
    )

    # Hours of work must not end in a folder that cannot be written to.
    check_out(options.out, overwrite=options.overwrite)
    module = stage_module(options.stage)
    manifest = Manifest.load(options.data)
    # Read before the model is loaded: a wrong --train is an error that needs no waiting.
    shared = overlap(manifest, getattr(options, "model", None), getattr(options, "train", None))
    started = time.perf_counter()
    measured: Measured = module.measure(options, manifest)
    metrics = measured.metrics
    if metrics is None:
        metrics = module.metrics(measured.records)
    protocol, limit_flags = dict(measured.protocol), []
    if options.limit is not None:
        protocol["limit"] = options.limit
        if options.limit < manifest.samples:
            limit_flags = [f"limit/{options.limit}"]
    state = processes()
    result = Result(
        stage=measured.stage or options.stage,
        protocol=protocol,
        data={
            "path": str(options.data),
            "name": manifest.name,
            "hash": data_hash(manifest, options.limit),
            **measured.data,
            "overlap": shared,
        },
        model=measured.model,
        environment=environment(state.num_processes, measured.device),
        metrics=metrics,
        flags=[
            *overlap_flags(shared),
            *data_flags(manifest),
            *limit_flags,
            *measured.flags,
            *_few_clusters(metrics),
        ],
        timing=measured.timing | {"total_s": time.perf_counter() - started},
    )
    # A process that is late must not take this result for an older one in its way.
    state.wait_for_everyone()
    if state.is_main_process:
        write_result(options.out, result, measured.records)
        if measured.write_more is not None:
            measured.write_more(options.out)
    state.wait_for_everyone()
    return result


def _few_clusters(metrics: Sequence[Metric]) -> list[str]:
    """Flag intervals of so few images, or other clusters, that their width is a guess itself."""
    counts = []
    for metric in metrics:
        if metric.ci95 is not None and metric.clusters is not None:
            counts.append(metric.clusters)
    few = [count for count in counts if count < FEW_CLUSTERS]
    return [f"few_clusters/{len(few)} of {len(counts)} intervals, least {min(few)}"] if few else []

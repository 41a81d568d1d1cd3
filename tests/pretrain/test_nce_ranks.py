"""Losses that compare rows of all ranks have the value and gradients of one process on two."""

import pytest
import torch

from tests.pretrain.loss_ranks import averaged, save_averages
from tests.ranks import run_ranks

COUNTS = [[5, 5], [8, 2], [10, 0], [0, 10]]


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(10, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return {
        "p": p,
        "q": q,
        "temperature": torch.tensor([0.1], dtype=torch.float64),
        "ids": torch.tensor(
            [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4], [5, 1], [0, 6], [7, 7], [8, 8], [8, 9]]
        ),
        "drawn": torch.tensor([0, 1] * 5),
        "local": torch.randn(10, 3, 6, generator=generator, dtype=torch.float64),
        "mask": torch.arange(3) < torch.tensor([[3], [2], [1], [3], [1], [3], [2], [2], [3], [3]]),
    }


@pytest.fixture(scope="module")
def two_ranks(rows, tmp_path_factory) -> dict[tuple[int, ...], dict[str, torch.Tensor]]:
    """Results of two processes for each division of the rows."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({"rows": rows, "counts": COUNTS}, folder / "in.pt")
    run_ranks(2, save_averages, folder / "in.pt", folder / "out.pt")
    results = torch.load(folder / "out.pt", weights_only=True)
    return {tuple(counts): result for counts, result in zip(COUNTS, results, strict=True)}


def values_of(result: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of a case: its own value under "", each gradient under ": leaf"."""
    values = {}
    for name, value in result.items():
        if name == case or name.startswith(case + ":"):
            values[name.removeprefix(case)] = value
    return values


def assert_same(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == reference.keys() and len(ours) >= 3
    for name, value in reference.items():
        torch.testing.assert_close(
            ours[name].view_as(value), value, rtol=1e-9, atol=1e-11, msg=name
        )


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("case", ["nce", "nce with ids", "sampled", "global_local"])
def test_two_ranks_give_loss_and_gradients_of_one_process(rows, two_ranks, counts, case):
    assert_same(values_of(two_ranks[tuple(counts)], case), values_of(averaged(rows, [10], 0), case))


@pytest.mark.parametrize("case", ["nce without counts", "intra_modal"])
def test_equal_ranks_need_no_counts(rows, two_ranks, case):
    assert_same(values_of(two_ranks[5, 5], case), values_of(averaged(rows, [10], 0), case))


def test_negatives_of_the_rank_give_the_mean_of_two_separate_processes(rows, two_ranks):
    ours = values_of(two_ranks[5, 5], "nce of this rank")
    alone = []
    for half in (slice(0, 5), slice(5, 10)):
        part = {name: value[half] for name, value in rows.items() if name != "temperature"}
        part["temperature"] = rows["temperature"]
        alone.append(values_of(averaged(part, [5], 0), "nce of this rank"))
    for name in ("", ": temperature"):
        torch.testing.assert_close(ours[name], (alone[0][name] + alone[1][name]) / 2)
    for name in (": p", ": q"):
        torch.testing.assert_close(ours[name], torch.cat([half[name] for half in alone]) / 2)
    assert abs(ours[""] - two_ranks[5, 5]["nce with ids"]) > 0.1


def test_published_gradients_are_those_of_the_authors_gather(two_ranks):
    assert_same(values_of(two_ranks[5, 5], "nce published"), values_of(two_ranks[5, 5], "authors"))


def test_published_gradients_of_features_are_half_the_exact_ones_on_two_ranks(two_ranks):
    published, exact = (values_of(two_ranks[5, 5], case) for case in ("nce published", "nce"))
    for leaf, factor in (("", 1), (": p", 0.5), (": q", 0.5), (": temperature", 1)):
        torch.testing.assert_close(published[leaf], factor * exact[leaf], rtol=1e-9, atol=1e-11)

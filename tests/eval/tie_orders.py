"""Every ranking that scores with ties allow, for tests that average over all of them."""

from itertools import permutations, product


def orders(scores: list[float]) -> list[list[int]]:
    """Return all orders of positions in which no score comes before a higher one."""
    groups = []
    for level in sorted(set(scores), reverse=True):
        groups.append([i for i, score in enumerate(scores) if score == level])
    permuted_groups = [list(permutations(group)) for group in groups]
    all_orders = []
    for parts in product(*permuted_groups):
        order: list[int] = []
        for part in parts:
            order += part
        all_orders.append(order)
    return all_orders

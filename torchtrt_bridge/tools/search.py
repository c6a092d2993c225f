"""The fewest layers to raise, where raising more never hurts: bisection along a ranking, then pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Layers = frozenset[str]


def fewest(ranked: Sequence[str], meets: Callable[[Layers], bool]) -> Layers:
    """A set of layers that meets the target, and none of whose members can be left out.

    The shortest head of ``ranked`` that meets it is found by halving. Then its members are left out one at a time,
    those that matter least first, wherever the rest still meets it.

    Args:
        ranked: all layers, those that matter most first. All of them together meet the target.
        meets: whether the target is met where these layers are raised; asked some ``log2(n) + k`` times.
    """
    short, enough = 0, len(ranked)
    if meets(frozenset()):
        return frozenset()
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if meets(frozenset(ranked[:middle])) else (middle, enough)
    raised = frozenset(ranked[:enough])
    for layer in reversed(ranked[:enough]):
        if meets(raised - {layer}):
            raised -= {layer}
    return raised


def first_that_meets(start: Layers, ranked: Sequence[str], meets: Callable[[Layers], bool]) -> Layers | None:
    """``start`` and as few more layers, in the order of ``ranked``, as it takes; None where all are not enough.

    For a second, dearer judge of what a first one found: it is asked once where both agree.
    """
    more = [layer for layer in ranked if layer not in start]
    short, enough, step = -1, 0, 1
    while not meets(start | frozenset(more[:enough])):
        if enough == len(more):
            return None
        short, enough, step = enough, min(enough + step, len(more)), 2 * step
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if meets(start | frozenset(more[:middle])) else (middle, enough)
    return start | frozenset(more[:enough])

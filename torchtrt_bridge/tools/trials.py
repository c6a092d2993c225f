"""What ttb.tune_precision() tried so far, and the file from which an interrupted search goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import InvalidFile
from ..runtime.files import write_atomically

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate: the layers that were raised, its score, whether that meets the target, and ``how`` it ran.

    ``how`` is ``"program"`` (by PyTorch), ``"compiled"``, or ``"ranking"``: all layers but one were raised, and the
    score is the relative L2 of the results, whatever the target is of; it never passes.
    """

    raised: tuple[str, ...]
    score: float
    passed: bool
    how: str


class Trials:
    """Scores each candidate once.

    Args:
        layers: all layers, in the graph's order.
        passes: whether a score meets the target.
        problem: what the scores depend on, as plain data; a file of another problem is refused.
        path: the file to keep the scores in; it is written anew after every trial. None keeps none.

    Raises:
        InvalidFile: the file at ``path`` is damaged, or of another problem.
    """

    def __init__(
        self,
        layers: Iterable[str],
        passes: Callable[[float], bool],
        problem: Mapping[str, Any],
        path: str | os.PathLike[str] | None,
    ):
        self._order = {layer: index for index, layer in enumerate(layers)}
        self._passes, self._problem, self._path = passes, dict(problem), path
        self._scores: dict[tuple[str, tuple[str, ...]], float] = {}
        self.done: list[Trial] = []
        if path is not None and os.path.exists(path):
            self._scores = _read(path, self._problem)

    def __call__(self, raised: Iterable[str], how: str, score: Callable[[], float]) -> Trial:
        """The trial of ``raised``; ``score()`` is asked where it is not known yet."""
        layers = tuple(sorted(raised, key=self._order.__getitem__))
        known = next((trial for trial in self.done if (trial.how, trial.raised) == (how, layers)), None)
        if known is not None:
            return known
        if (how, layers) not in self._scores:
            self._scores[how, layers] = float(score())
            self._write()
        value = self._scores[how, layers]
        self.done.append(Trial(layers, value, how != "ranking" and self._passes(value), how))
        return self.done[-1]

    def _write(self) -> None:
        if self._path is None:
            return
        rows = [[how, list(layers), _plain(score)] for (how, layers), score in self._scores.items()]
        text = json.dumps({"format": _FORMAT, "problem": self._problem, "scores": rows}, indent=1, allow_nan=False)
        write_atomically(self._path, lambda file: file.write(text.encode()))


def _read(path: str | os.PathLike[str], problem: Mapping[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        known, rows = data["problem"], data["scores"]
        scores = {(str(how), tuple(map(str, layers))): float(score) for how, layers, score in rows}
        number = data["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidFile(
            f"{os.fspath(path)!r} holds no search to go on with ({type(error).__name__}: {error}). Delete it, or name"
            " another file with resume=."
        ) from None
    differing = [key for key in problem if number == _FORMAT and known.get(key) != json.loads(json.dumps(problem[key]))]
    if number != _FORMAT or differing:
        what = f"its {differing[0]} is another" if differing else f"its format is {number!r}"
        raise InvalidFile(
            f"{os.fspath(path)!r} holds another search: {what}. Delete it, or name another file with resume=."
        )
    return scores


def _plain(score: float) -> float | str:
    """JSON has no infinity and no NaN; ``float()`` reads their names."""
    return score if math.isfinite(score) else str(score)

"""The wires between segments, as the manifest holds them: checked so that a call can follow them blindly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backends.base import Artifact, Wiring
from ..errors import InvalidFile
from ..signature import TensorSpec, spec_from_dict, spec_to_dict

_AGAIN = "Fetch or copy the file again, or compile and save the model again."


def write(wiring: Wiring) -> dict[str, Any]:
    """Plain data for the manifest."""
    sizes = None if wiring.sizes is None else [[spec_to_dict(s) for s in specs] for specs in wiring.sizes]
    return {"inputs": wiring.inputs, "outputs": wiring.outputs, "sizes": sizes}


def read(data: Any) -> Wiring:
    """What :func:`write` wrote.

    Raises:
        InvalidFile: it is something else.
    """
    try:
        inputs, outputs, sizes = data["inputs"], data["outputs"], data["sizes"]
        if len(data) != 3 or not all(type(name) is str for names in (inputs, outputs) for name in names):
            raise ValueError("names of wires are texts")
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None
        if sizes is not None:
            before, after = (tuple(spec_from_dict(spec) for spec in group) for group in sizes)
            specs = before, after
            if (len(before), len(after)) != (len(inputs), len(outputs)):
                raise ValueError("each wire has one size")
        return Wiring(tuple(inputs), tuple(outputs), specs)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFile(f"The manifest is wrong in a segment's wiring: {error}. {_AGAIN}") from None


def check(artifact: Artifact) -> None:
    """Every wire is written once, before it is read, and results are wires.

    Raises:
        InvalidFile: it is not so.
    """
    several = len(artifact.segments) > 1 or bool(artifact.results)
    if not several and artifact.segments[0].wiring is None:
        return
    known = {f"input.{index}" for index in range(len(artifact.signature.inputs))}
    for segment in artifact.segments:
        wiring = segment.wiring
        if wiring is None or (len(wiring.inputs), len(wiring.outputs)) != (len(segment.inputs), len(segment.outputs)):
            raise _wrong("a segment whose wires are not its inputs and outputs")
        _known(wiring.inputs, known)
        if len(set(wiring.outputs)) != len(wiring.outputs) or known & set(wiring.outputs):
            raise _wrong("a wire that is written twice")
        known |= set(wiring.outputs)
    _known(artifact.results, known)
    if len(artifact.results) != len(artifact.signature.outputs):
        raise _wrong(f"{len(artifact.results)} results in place of {len(artifact.signature.outputs)}")


def _known(names: Sequence[Any], known: set[str]) -> None:
    strange = [name for name in names if type(name) is not str or name not in known]
    if strange:
        raise _wrong(f"the wire {str(strange[0])[:80]!r}, which nothing writes")


def _wrong(what: str) -> InvalidFile:
    return InvalidFile(f"The saved module has {what}. {_AGAIN}")


def consumers(artifact: Artifact) -> Mapping[str, int]:
    """For each wire the number of the last segment that reads it; results are read by one after the last."""
    last: dict[str, int] = {}
    for index, segment in enumerate(artifact.segments):
        assert segment.wiring is not None
        last.update(dict.fromkeys((*segment.wiring.outputs, *segment.wiring.inputs), index))
    last.update(dict.fromkeys(artifact.results, len(artifact.segments)))
    return last

"""Writes ``docs/operators.md`` from the sweep's results.

    python tests/sweep/table.py build/sweep          # the folder of run.py's results, or one file of them
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import operators
from run import COLUMNS, FAULTS, counted, read

BEFORE = pathlib.Path(__file__).with_name("before.json")
"""By family, cases and right ones of the first run, before there were built-in converters."""

OUT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "operators.md"
_WHERE = {
    "cuda": "On a GPU: each case compiled, run and compared with eager",
    "cpu": "On the CPU: ONNX Runtime (fp32) or PyTorch (fp16) run what the ONNX route makes; TensorRT takes no part",
    "build": "Without a GPU: each case built into a plan, which was not run",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--on", default="", help="the GPU and the versions, for the page's first line")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    options = parser.parse_args(arguments)
    files = sorted(options.results.glob("*.jsonl")) if options.results.is_dir() else [options.results]
    sections = [section(file.stem, read(file), options.on) for file in files]
    options.out.write_text(HEAD.format(number=len(operators.operators()), left_out=_left_out()) + "".join(sections))


HEAD = """# Operators

What becomes of {number} operators, each a module by itself, that is given to `compile(backend="auto")`. The operators
and their arguments are torch's own list and samples; `make sweep` tries them all, the tests a tenth. This page is
written by `tests/sweep/table.py` from the results.

A case is an operator, one of two samples of its arguments, and a variant: fp32 or `precision="fp16"` with fixed or
dynamic shapes, integers, fp16 inputs. A sample's tensors are the module's inputs, a layer's weights its buffers. A
dynamic case has one dim (of every input that shares its size) from 2, or the sample's size, to twice that size.

- **right**: eager's structure, dtypes, shapes and values, on the sample, on other values of the same shapes and, if
  dynamic, at another size. fp32 within 2e-4, fp16 within 2e-2 of the value and of the result's root mean square.
- **refused**: one of the package's own errors, when compiling or when called. No result, so none that is wrong.
- **wrong**: everything else: another result, another exception, the end of the process, over a minute.

Not counted is what says nothing of a compiler: eager does not run it, the result is the input itself, torch.export does
not capture it (with such dims), eager's whole numbers are others on a GPU than on the CPU (places of equal values).

Two columns: *whole* is `hybrid=False`, all of it in TensorRT but for what no engine can take or give at its edges
([hybrid.md](hybrid.md)), `tensorrt+torch` in the table by route; *hybrid* is `hybrid="allow_torch"`: PyTorch runs what
no route takes, all of it if need be, as an operator by itself leaves nothing else.

{left_out}
"""


def _left_out() -> str:
    return "Left out of torch's list: " + "; ".join(operators.LEFT_OUT) + ".\n"


def section(where: str, records: Sequence[Mapping[str, Any]], on: str = "") -> str:
    """The tables of one file of results."""
    cases = [r for r in records if counted(r, "whole") not in ("no such case", "not counted")]
    names = {r["case"].split("/")[0] for r in cases}
    skipped = collections.Counter(r["whole"]["outcome"] for r in records)["not counted"]
    head = f"\n## {where}\n\n{_WHERE.get(where, where)}{'; ' + on if on else ''}. "
    head += f"{len(cases)} cases of {len(names)} operators; {skipped} not counted.\n"
    wide = [r for r in cases if counted(r, "whole") == "refused" and "float64" in r["whole"]["detail"]]
    if wide:
        names = sorted({r["case"].split("/")[0] for r in wide})
        head += f"{len(wide)} of the refused compute in float64, which TensorRT has not: {', '.join(names)}.\n"
    earlier = sum(bool(r.get("earlier")) for r in cases)
    if earlier:
        head += f"{earlier} of the right ones are from a run before, and were not run again.\n"
    columns = [c for c in COLUMNS if c == "whole" or any("hybrid" in r for r in cases)]
    text = head + (_before_and_after(cases) if where == "cuda" else "")
    for title, key in (("Variant", _variant), ("Family", _family), ("Route", _route)):
        text += "\n" + _table(title, cases, key, columns)
    return text + _unfinished(cases, columns)


def _before_and_after(cases: Sequence[Mapping[str, Any]]) -> str:
    """What the built-in converters changed, whole in TensorRT, by family."""
    before: dict[str, tuple[int, int]] = {name: tuple(pair) for name, pair in json.loads(BEFORE.read_text()).items()}
    after: dict[str, tuple[int, int]] = {}
    for record in cases:
        number, right = after.get(_family(record), (0, 0))
        after[_family(record)] = number + 1, right + (counted(record, "whole") == "right")
    lines = ["| Family | before: cases | right | now: cases | right |", "| --- | --- | --- | --- | --- |"]
    for name in sorted({*before, *after}):
        lines.append(f"| {name} | {_share(before.get(name))} | {_share(after.get(name))} |")
    totals = (tuple(map(sum, zip(*pairs.values()))) for pairs in (before, after))
    lines.append(f"| **all** | {' | '.join(map(_share, totals))} |")
    return _BEFORE + "\n".join(lines) + "\n"


_BEFORE = """
Before the built-in converters, whole in TensorRT, and now. The run before was stopped after 430 s, and asked for
indices out of range in 14 cases, which ended the process; both were of the sweep's own making.

"""


def _share(pair: Sequence[int] | None) -> str:
    return f"{pair[0]} | {pair[1]} ({pair[1] / pair[0]:.1%})" if pair and pair[0] else "0 | "


def _variant(record: Mapping[str, Any]) -> str:
    return str(record["case"].split("/")[-1])


def _family(record: Mapping[str, Any]) -> str:
    name = record["case"].split("/")[0]
    return str(record.get("family") or operators.family(operators.operators()[name]))


def _route(record: Mapping[str, Any]) -> str:
    trial = record.get("hybrid") or record["whole"]
    return f"{trial['route']} ({trial['runtime']})" if trial.get("route") else "none"


def _table(title: str, cases: Sequence[Mapping[str, Any]], key: Any, columns: Sequence[str]) -> str:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in cases:
        groups.setdefault(key(record), []).append(record)
    head = [title, "cases", *(f"{c}: {outcome}" for c in columns for outcome in ("right", "refused", "wrong"))]
    rows = [[name, *_counts(groups[name], columns)] for name in sorted(groups)]
    rows.append(["**all**", *_counts(cases, columns)])
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _counts(cases: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterable[str]:
    yield str(len(cases))
    for column in columns:
        outcomes = collections.Counter(counted(r, column) for r in cases)
        yield f"{outcomes['right']} ({outcomes['right'] / len(cases):.1%})" if cases else "0"
        yield str(outcomes["refused"])
        yield str(sum(outcomes[fault] for fault in FAULTS))


def _unfinished(cases: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """By operator, what is not right, with one reason."""
    text = ""
    for column in columns:
        by_operator: dict[str, list[Mapping[str, Any]]] = {}
        for record in cases:
            if counted(record, column) != "right":
                by_operator.setdefault(record["case"].split("/")[0], []).append(record)
        text += f"\n### Not right: {column}\n\n| operator | cases | outcome | for example |\n"
        text += "| --- | --- | --- | --- |\n"
        for name in sorted(by_operator):
            some = by_operator[name]
            trial = some[0].get(column) or some[0]["whole"]
            detail = f"{trial.get('error', '')}: {trial['detail']}"[:220]
            detail = detail.replace("|", "/").replace("<", "&lt;").replace("](", "] (")
            outcomes = ", ".join(sorted({counted(r, column) for r in some}))
            text += f"| `{name}` | {len(some)} | {outcomes} | {detail} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())

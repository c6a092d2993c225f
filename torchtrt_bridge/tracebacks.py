"""What a compilation leaves behind when it ends: no memory, and an error that is short where IPython shows it.

IPython keeps the last exception, and ``sys.last_traceback`` does, and with it every frame that it passed through: the
captured program, its weights in another precision, an engine. So an exception leaves with these frames emptied. (A
debugger that is opened afterwards finds no local variables in them.)
"""

from __future__ import annotations

import functools
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")
R = TypeVar("R")

_HERE = str(Path(__file__).parent)
_SHOW_ALL = ("Verbose", "Docs")  # IPython's %xmode


def leaves_no_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates what a user calls to compile: what it made on the way is gone when it returns or raises."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        hurry = False
        handled = {id(error) for error in chain(sys.exc_info()[1])}  # by the caller, whose business they are
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            hurry = isinstance(error, KeyboardInterrupt)  # someone waits for it to end
            for each in chain(error):
                if id(each) in handled:
                    continue
                traceback.clear_frames(each.__traceback__)
                _drop_lineless(each.__traceback__)
            del args, kwargs  # this frame is in the traceback as well
            raise
        finally:
            if torch.cuda.is_initialized() and not hurry:
                gc.collect()  # graphs refer to themselves, and hold weights: on a GPU that cannot wait

    return wrapper


def _drop_lineless(trace: TracebackType | None) -> None:
    """Take out the entries below the first that have no line number (-1 in Python 3.10), as where an interrupt met a
    generator that was about to start. IPython cannot format an exception with such a frame, and shows none at all."""
    while trace is not None:
        while trace.tb_next is not None and trace.tb_next.tb_lineno in (None, -1):
            trace.tb_next = trace.tb_next.tb_next
        trace = trace.tb_next


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what it was raised from or while handling, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def render(error: BaseException) -> list[str]:
    """``error`` as IPython shows it: what happened, on which line of the user's; below, the details and the cause.

    After ``%xmode Verbose``, every frame follows.
    """
    summary, _, details = str(error).partition("\n")
    lines = [_red(type(error).__name__) + f": {summary}"]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_internal(frame.filename)]
    for frame in own[-1:]:
        lines += ["", f"at {_place(frame)}", f"    {frame.line}"]
    through = [frame for frame in frames if not _is_ours_or_torchs(frame.filename) and frame not in own]
    for frame in through[-1:]:
        lines += [f"through {_place(frame)}", f"    {frame.line}"]
    if details:
        lines += ["", *details.strip("\n").splitlines()]
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = str(root).strip().partition("\n")[0]
    if reason not in str(error):
        lines += ["", f"caused by {type(root).__name__}: {reason}"]
    shell = _shell()
    if shell is not None and shell.InteractiveTB.mode in _SHOW_ALL:
        lines += ["", *shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)]
    else:
        lines += ["", "(%xmode Verbose and then %tb: every frame)"]
    return lines


def _is_internal(filename: str) -> bool:
    """Whether a frame is neither the user's code nor a cell's: this package's, an installed one's, Python's own."""
    return (
        filename.startswith(_HERE)
        or "site-packages" in filename
        or "dist-packages" in filename
        or filename.startswith((sys.base_prefix + "/lib/", "<frozen"))
    )


def _is_ours_or_torchs(filename: str) -> bool:
    return filename.startswith((_HERE, str(Path(torch.__file__).parent), sys.base_prefix, "<frozen"))


def _place(frame: traceback.FrameSummary) -> str:
    shell = _shell()
    naming: Any = getattr(getattr(shell, "compile", None), "format_code_name", None)
    cell = naming(frame.filename) if naming is not None else None  # ("Cell", "In[3]") for a cell
    where = " ".join(cell) if cell else frame.filename
    return f"{where}, line {frame.lineno}"


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _red(text: str) -> str:
    return f"\033[31m{text}\033[0m"

"""matplotlib, for what has a ``plot()``; it is imported when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import BackendUnavailable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_class() -> type[Figure]:
    """matplotlib's Figure, which draws without a window.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable(f"plot() needs matplotlib ({error}); pip install matplotlib.") from None
    return Figure

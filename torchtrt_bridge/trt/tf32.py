"""Whether fp32 matrix products and convolutions are rounded to TF32, which TensorRT for RTX decides once a process.

Full TensorRT has a builder flag, engine by engine. RTX 1.4 and 1.6 have the flag too and pay it no heed: on Hopper
every engine came out in TF32 (relative error 3e-4). What they heed is the environment variable NVIDIA_TF32_OVERRIDE,
and only when the process makes its first ``Builder``, even if it then does nothing but load plans. So the first builder
is made here, with the variable set for that moment.
"""

from __future__ import annotations

import os
import threading

from .flavor import Flavor

VARIABLE = "NVIDIA_TF32_OVERRIDE"

_lock = threading.Lock()
_in_use: bool | None = None


def settle(bound: Flavor, wanted: bool) -> bool:
    """Decide for this process, if it is still open, and say how fp32 is computed: True means in TF32.

    A user's own setting of the variable is respected.
    """
    global _in_use
    if bound.has_tf32_flag:
        return wanted
    with _lock:
        if _in_use is None:
            given = os.environ.get(VARIABLE)
            if given is None and not wanted:
                os.environ[VARIABLE] = "0"
            try:
                bound.trt.Builder(bound.logger)
            finally:
                if given is None:
                    os.environ.pop(VARIABLE, None)
            _in_use = wanted if given is None else given != "0"
        return _in_use

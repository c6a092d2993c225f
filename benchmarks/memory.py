"""Peak growth of host and GPU memory while a 350 MB model is compiled and saved, as multiples of its weights.

    python benchmarks/memory.py [fp32 | fp16]

Growth is over the process as it is with the model on the GPU, all packages imported, CUDA and cuBLAS initialised, and
one small model compiled (what TensorRT's own library takes). Children are counted. Sampled every 5 ms: host memory is
the sum of the processes' private and shared resident pages (PSS), GPU memory the driver's count of what is used.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

import torchtrt_bridge as ttb


class Peak:
    host = 0.0
    gpu = 0.0


def host_bytes() -> int:
    """Resident memory of this process and its children; shared pages are counted once."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.Error):
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += int(text.split("Pss:")[1].split()[0]) * 1024
    return total


def gpu_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextlib.contextmanager
def peak_over(base: tuple[int, int]) -> Iterator[Peak]:
    """The largest growth over ``base`` (host, GPU bytes) within the block."""
    peak, done = Peak(), threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak.host = max(peak.host, host_bytes() - base[0])
            if torch.cuda.is_available():
                peak.gpu = max(peak.gpu, gpu_bytes() - base[1])
            time.sleep(0.005)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main(precision: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [layer for _ in range(21) for layer in (torch.nn.Linear(2048, 2048), torch.nn.GELU())]
    small = torch.nn.Linear(8, 8).eval().to(device)
    ttb.compile(small, torch.randn(2, 8, device=device), precision=precision)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*layers).eval().to(device)
    x = torch.randn(8, 2048, device=device)
    with torch.no_grad():
        model(x)
    gc.collect()
    weights = sum(p.nbytes for p in model.parameters())

    base = host_bytes(), gpu_bytes() if device == "cuda" else 0
    with peak_over(base) as compiling:
        fast = ttb.compile(model, x, precision=precision)
    gc.collect()
    base = host_bytes(), gpu_bytes() if device == "cuda" else 0
    with tempfile.TemporaryDirectory() as folder:
        with peak_over(base) as saving:
            fast.save(os.path.join(folder, "fast.safetensors"))
        with peak_over(base) as saving_torch:
            torch.save(fast.state_dict(), os.path.join(folder, "fast.pth"))
    print(f"{precision} on {device}, weights {weights / 2**20:.0f} MiB; growth in multiples of them:")
    for name, peak in (("compile", compiling), ("save()", saving), ("torch.save(state_dict())", saving_torch)):
        print(f"  {name:<26}host {peak.host / weights:.2f}   GPU {peak.gpu / weights:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fp32")

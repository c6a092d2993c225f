"""Saved files, changed at random, and what loading them comes to. Run as a process of its own, which may crash:

    python mutating.py FOLDER SEED BYTES MANIFESTS PROGRAMS

BYTES files are changed anywhere; MANIFESTS and PROGRAMS files in their JSON alone, with the digests put right again. It
prints each change before it tries it, and at the end a line of JSON.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import pathlib
import random
import re
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from saved import artifact, plan, program

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.runtime.files import save_file

X = torch.linspace(-1, 1, 8).reshape(2, 4)
#: What no loading may do, as Python's audit events name it.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "shutil.", "ctypes.dlopen")
FORBIDDEN += ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.putenv", "pty.", "ftplib.", "urllib.")
Modules = dict[str, ttb.TRTModule]
HOSTILE: list[Any] = [None, True, -1, 0, 2**63, 1.5, "", "x", "os", "os:system", "builtins:eval", "__import__('os')"]
HOSTILE += ["torch.ops.aten.from_file.default", "torch.os.system", "torch.ops.aten.mul.Tensor", "../../etc/passwd"]
HOSTILE += ["subprocess:Popen", "shelve:DbfilenameShelf", [], {}, [None], [[]], {"x": None}, {"leaf": 0}, 10**30]


@torch.library.custom_op("bridge_tests::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halve.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Halves(torch.nn.Module):
    """TensorRT, PyTorch, TensorRT."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
        self.config, self.num_classes = {"a": 1}, 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.ops.bridge_tests.halve(torch.tanh(self.first(x))))


class Watch:
    """An audit hook that can be asked what it saw. It cannot be removed, so it is switched."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(f"{event}{arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.seen.append(f"open{arguments!r}"[:200])


def modules() -> Modules:
    """A module of each runtime. The plan is made-up bytes, which only a GPU would look at."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).eval()
    model.config = {"classes": [2, 3.5, "x", None], "nested": {"dtype": torch.float32}}
    model.num_classes = 2
    settings: dict[str, Any] = {"dynamic_batch": (1, 2, 8), "attributes": ("config", "num_classes")}
    return {
        "segments": ttb.compile(Halves().eval(), X, device="cpu", backend="onnx", **settings),
        "onnxruntime": ttb.compile(model, X, **settings),
        "torch": ttb.compile(model, X, "bf16", **settings),
        "tensorrt": ttb.TRTModule(_artifact=artifact(plan(500), source=program(), report=_report())),
    }


def _report() -> dict[str, Any]:
    return {"backend": "onnx", "precision": "fp16", "runtime": "tensorrt", "where": "sm89", "seconds": {"a": 1.0}} | {
        "kept_fp32": {},
        "verification": [],
        "notes": ["note"],
    }


def write(module: ttb.TRTModule, kind: str, path: pathlib.Path) -> None:
    """One of the three forms in which a module is kept."""
    if kind == "safetensors":
        module.save(path)
    else:
        torch.save(module.state_dict() if kind == "state dict" else module, path)


def read(kind: str, path: pathlib.Path) -> ttb.TRTModule:
    return torch.load(path) if kind == "whole module" else ttb.load(path)


def contents(module: ttb.TRTModule) -> dict[str, Any]:
    """All that a module holds, comparable."""
    tensors = module.state_dict().items()
    return {name: (t.dtype, t.shape, bytes(t.reshape(-1).view(torch.uint8).numpy().data)) for name, t in tensors}


def changed_bytes(data: bytes, choose: random.Random) -> bytes:
    """``data`` with one to three accidents: a bit, a byte, a stretch lost, doubled, moved, zeroed or overwritten."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 3)):
        size = len(changed)
        if size < 8:
            break
        # half of the accidents hit the beginning or the end, where the structure is
        edge = choose.randrange(min(size, 400))
        at = choose.choice([choose.randrange(size), edge, size - 1 - edge])
        length = min(choose.choice([1, 1, 2, 4, 8, 64, 1000]), size - at)
        kind = choose.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << choose.randrange(8)
        elif kind == 1:
            changed[at] = choose.randrange(256)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            changed[at : at + length] = bytes(length)
        elif kind == 5:
            changed[at : at + length] = choose.randbytes(length)
        elif kind == 6:
            to = choose.randrange(size)
            piece = bytes(changed[at : at + length])
            changed[to : to + length] = piece
        else:
            del changed[at:]
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within ``value``."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def changed_json(document: Any, choose: random.Random) -> Any:
    """``document`` with one to three of its values replaced, removed, renamed, doubled or exchanged."""
    changed = copy.deepcopy(document)
    for _ in range(choose.randint(1, 3)):
        *path, last = choose.choice(places(changed))
        at = changed
        for key in path:
            at = at[key]
        kind = choose.randrange(6)
        if kind == 0:
            del at[last]
        elif kind == 1 and isinstance(at, dict):
            at[str(choose.choice(["extra", "class", "__class__", "as_tensor", "leaf", "0"]))] = at[last]
        elif kind == 1:
            at.insert(last, copy.deepcopy(at[last]))
        elif kind == 2:
            other: Any = changed
            for key in choose.choice(places(changed)):
                other = other[key]
            at[last] = copy.deepcopy(other)
        elif kind == 3 and isinstance(at[last], int) and not isinstance(at[last], bool):
            at[last] += choose.choice([-1, 1, 2**31, -(2**40)])
        elif kind == 4 and isinstance(at[last], str):
            at[last] = choose.choice([at[last] + "x", at[last][1:], at[last].upper(), at[last] * 3])
        else:
            at[last] = copy.deepcopy(choose.choice(HOSTILE))
    return changed


def signed(tensors: dict[str, torch.Tensor], manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """``tensors`` with this manifest, its digest put right, as one does who means harm."""

    def text(data: dict[str, Any]) -> bytes:
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    plain = {key: value for key, value in manifest.items() if key != "digest"}
    plain["digest"] = hashlib.sha256(text(plain)).hexdigest()
    return {**tensors, "manifest": torch.frombuffer(bytearray(text(plain)), dtype=torch.uint8)}


def in_manifest(tensors: dict[str, torch.Tensor], choose: random.Random) -> dict[str, torch.Tensor]:
    """A change anywhere in the manifest but in the digests of tensors."""
    manifest = json.loads(bytes(tensors["manifest"].numpy()))
    entries = manifest.pop("tensors")
    changed = changed_json(manifest, choose)
    return signed(tensors, {**changed, "tensors": entries} if choose.random() < 0.9 else changed)


def in_program(tensors: dict[str, torch.Tensor], choose: random.Random) -> dict[str, torch.Tensor]:
    """A change in the JSON of the program that the file holds, its digest put right too."""
    key = choose.choice([name for name in tensors if re.fullmatch(r"(program|source)(\.\d+)?", name)])
    document = json.loads(bytes(tensors[key].numpy()))
    text = json.dumps(changed_json(document, choose), separators=(",", ":")).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    manifest = json.loads(bytes(tensors["manifest"].numpy()))
    digest = hashlib.sha256(f"uint8{[len(text)]}".encode() + text).hexdigest()
    manifest["tensors"][key] = {"dtype": "uint8", "shape": [len(text)], "sha256": digest}
    return signed({**tensors, key: data}, manifest)


class Trial:
    """Loads changed files, and counts what came of it."""

    def __init__(self, folder: pathlib.Path, watch: Watch):
        self.path = folder / "changed"
        self.watch = watch
        self.counts = {"refused": 0, "right": 0, "harmless": 0}
        self.wrong: list[str] = []

    def attempt(self, name: str, act: Callable[[], str]) -> None:
        self.watch.seen.clear()
        self.watch.on = True
        try:
            outcome = act()
        except Exception as error:
            frames = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
            outcome = f"{type(error).__name__}: {error} ({' '.join(frames)})"[:400]
        finally:
            self.watch.on = False
        if self.watch.seen:
            self.wrong.append(f"{name}: it did {self.watch.seen}")
        elif outcome in self.counts:
            self.counts[outcome] += 1
        else:
            self.wrong.append(f"{name}: {outcome}")


def mutate_bytes(trial: Trial, made: Modules, count: int, choose: random.Random) -> None:
    kept = {}
    for runtime, module in made.items():
        for kind in ("safetensors", "state dict", "whole module"):
            write(module, kind, trial.path)
            result = module(X) if runtime != "tensorrt" else None
            kept[runtime, kind] = (trial.path.read_bytes(), contents(module), result)
            assert contents(read(kind, trial.path)) == contents(module)

    for number in range(count):
        runtime, kind = choose.choice(sorted(kept))
        data, held, result = kept[runtime, kind]
        changed = changed_bytes(data, choose)
        trial.path.unlink()  # the file may still be mapped
        trial.path.write_bytes(changed)
        print(number, runtime, kind, flush=True)

        def act(kind: str = kind, held: Any = held, result: Any = result) -> str:
            try:
                module = read(kind, trial.path)
            except BridgeError:
                return "refused"
            except Exception as error:
                # torch.load() is torch's own, and so are its errors
                return "refused" if kind == "whole module" else f"{type(error).__name__}: {error}"
            if contents(module) != held:
                return "loaded, and holds something else"
            return "right" if result is None or torch.equal(module(X), result) else "another result"

        trial.attempt(f"{number} {runtime} {kind}", act)


def mutate_json(trial: Trial, made: Modules, count: int, choose: random.Random, change: Callable[..., Any]) -> None:
    saved = {name: module.state_dict() for name, module in made.items()}
    if change is in_program:
        del saved["onnxruntime"]
    for number in range(count):
        runtime = choose.choice(sorted(saved))
        changed = change(saved[runtime], choose)
        save_file(trial.path, changed)
        print(number, runtime, flush=True)

        def act(runtime: str = runtime) -> str:
            try:
                module = ttb.load(trial.path)
            except BridgeError:
                return "refused"
            try:
                repr(module), module._repr_html_(), module.state_dict(), module.provenance, repr(module.signature)
                repr(module.report), module.dtype, vars(module)
                if hasattr(module, "config"):
                    repr(module.config)
                module(X)
            except BridgeError:
                return "refused"
            except (RuntimeError, TypeError, ValueError, IndexError):
                if change is in_program:  # torch's own error, from an operator that got what it does not take
                    return "refused"
                raise
            return "harmless"

        trial.attempt(f"{number} {runtime}", act)


def main() -> None:
    folder, seed, *counts = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
    warnings.simplefilter("ignore")
    logging.getLogger("torchtrt_bridge").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    made = modules()
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))  # a size that a file makes up is an error, not a flood
    os.chdir(folder)
    watch = Watch()
    watch.on = True
    os.system("true")
    open("made", "w").close()
    watch.on = False
    assert len(watch.seen) == 2, watch.seen  # it does see
    trials = {kind: Trial(folder, watch) for kind in ("bytes", "manifests", "programs")}
    mutate_bytes(trials["bytes"], made, counts[0], random.Random(seed))
    mutate_json(trials["manifests"], made, counts[1], random.Random(seed), in_manifest)
    mutate_json(trials["programs"], made, counts[2], random.Random(seed), in_program)
    print(json.dumps({kind: {**trial.counts, "wrong": trial.wrong} for kind, trial in trials.items()}))


if __name__ == "__main__":
    main()

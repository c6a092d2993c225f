"""Results of any structure, compared to the last field; and what a compilation must leave as it was."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

EXACT = {"rtol": 0.0, "atol": 0.0}


def assert_same(actual: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5, path: str = "result") -> None:
    """``actual`` has the classes, keys, dtypes and shapes of ``expected``, and its numbers."""
    wanted = torch.Tensor if isinstance(expected, nn.Parameter) else type(expected)
    assert type(actual) is wanted, f"{path} is a {type(actual)} instead of a {wanted}"
    if isinstance(expected, torch.Tensor):
        message = f"{path}: {{}}".format
        torch.testing.assert_close(actual, expected.detach(), rtol=rtol, atol=atol, equal_nan=True, msg=message)
    elif isinstance(expected, Mapping):
        assert list(actual) == list(expected), path
        for key in expected:
            assert_same(actual[key], expected[key], rtol, atol, f"{path}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), path
        for index, (a, b) in enumerate(zip(actual, expected)):
            assert_same(a, b, rtol, atol, f"{path}[{index}]")
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(actual, field.name), getattr(expected, field.name), rtol, atol, f"{path}.{field.name}")
    else:
        assert actual == expected, path


@contextlib.contextmanager
def nothing_changes(model: nn.Module, *inputs: torch.Tensor) -> Iterator[None]:
    """Within, nothing of the caller's changes: the model, the inputs, and torch's state of this thread and process."""
    before = _everything(model, inputs)
    try:
        yield
    finally:
        after = _everything(model, inputs)
        changed = [key for key in before if not _equal(before[key], after[key])]
        assert not changed, changed


def _everything(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    matmul = torch.backends.cuda.matmul
    found: dict[str, Any] = {
        "random numbers": torch.get_rng_state(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul precision": _or_none(torch.get_float32_matmul_precision),
        "tf32": (matmul.fp32_precision, _or_none(lambda: torch.backends.cudnn.allow_tf32)),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["stream"] = torch.cuda.current_stream()
        found["gpu random numbers"] = torch.cuda.get_rng_state()
    tensors = {**{f"input {i}": t for i, t in enumerate(inputs)}, **model.state_dict(keep_vars=True)}
    for name, tensor in tensors.items():
        found[f"identity of {name}"] = id(tensor)
        found[f"values of {name}"] = tensor.detach().clone()
        found[f"requires_grad of {name}"] = tensor.requires_grad
        found[f"grad of {name}"] = tensor.grad
        found[f"inference of {name}"] = tensor.is_inference()
    for name, parameter in model.named_parameters():
        if not parameter.is_inference():
            found[f"version of {name}"] = parameter._version
    for name, module in model.named_modules():
        plain = {k: v for k, v in module.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")}
        found[f"attributes of {name!r}"] = {key: (id(value), _copied(value)) for key, value in plain.items()}
    return found


def _or_none(read: Any) -> Any:
    try:
        return read()
    except RuntimeError:  # torch refuses to read its old settings once the new ones were used
        return None


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict, set)) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b)

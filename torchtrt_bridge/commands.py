"""The commands of :mod:`.cli`, in click."""

from __future__ import annotations

import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import click

from .errors import RunsOnCPU
from .version import __version__

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="torchtrt-bridge")
def commands() -> None:
    """PyTorch models on TensorRT: what works here, what a file holds, a file made into an engine.

    --debug, with any command, shows where an error came from.
    """


@commands.command()
@click.option("--route", "routes", multiple=True, help="Look at this route only; may be given again.")
@_AS_JSON
def doctor(routes: tuple[str, ...], as_json: bool) -> int:
    """What is installed, which routes into TensorRT work, and how to mend those that do not.

    Ends with 0 where at least one route works.
    """
    from .tools.doctor import EVERYTHING
    from .tools.doctor import doctor as examine

    diagnosis = examine(routes or EVERYTHING)
    click.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else repr(diagnosis))
    return 0 if diagnosis.works else 1


@commands.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_AS_JSON
def inspect(file: str, as_json: bool) -> None:
    """What FILE holds: a saved module, a plan, an ONNX model or an exported program. No engine is loaded."""
    from .tools.inspect import inspect as look

    contents = look(file)
    if as_json:
        click.echo(json.dumps(contents.to_dict(), indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in contents.rows():
        table.add_row(Text(name, "bold"), Text(text))
    Console(soft_wrap=False, width=None).print(table)


def _shapes(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, tuple[int, ...]]:
    """``x:1x3x224x224,mask:1x77`` as trtexec takes it; a name may hold a colon, a shape cannot."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in value.split(",") if value else ():
        name, colon, sizes = part.rpartition(":")
        if not colon or not name or (sizes and not all(size.isdigit() for size in sizes.split("x"))):
            raise click.BadParameter(f"{part!r} is no input with a shape, such as x:1x3x224x224")
        shapes[name.strip("'\"")] = tuple(int(size) for size in sizes.split("x")) if sizes else ()
    return shapes


def _range(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    if value is None:
        return None
    numbers = value.replace("x", ",").split(",")
    if len(numbers) != 3 or not all(number.strip().isdigit() for number in numbers):
        raise click.BadParameter(f"{value!r} is no range, such as 1,8,32 (min, opt, max)")
    smallest, usual, largest = (int(number) for number in numbers)
    return smallest, usual, largest


@commands.command("compile")
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="*.safetensors or *.pth: the saved form; *.plan or"
    " *.engine: the bare plan.  [default: MODEL's name with .safetensors]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
    help="[default: fp32; an ONNX model's own]",
)
@click.option(
    "--calibration",
    "--calib",
    "calibration",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="What Calibration.save() wrote, or an old TensorRT table (*.cache): for int8 and fp8 of an exported program.",
)
@click.option("--target", metavar="GPU", help="Build for a GPU elsewhere, such as sm89, or 'portable'.")
@click.option(
    "--device",
    metavar="DEVICE",
    help="cuda or cpu: where the result runs.  [default: the GPU here; without one, --target portable]",
)
@click.option("--backend", default="auto", show_default=True, metavar="ROUTE", help="For an exported program.")
@click.option("--dynamic-batch", callback=_range, metavar="MIN,OPT,MAX", help="The range of every input's axis 0.")
@click.option(
    "--min-shapes",
    "--minShapes",
    "min_shapes",
    callback=_shapes,
    metavar="NAME:1x3x224x224,...",
    help="Smallest shapes of dynamic inputs.",
)
@click.option("--opt-shapes", "--optShapes", "opt_shapes", callback=_shapes, metavar="NAME:...", help="Usual ones.")
@click.option("--max-shapes", "--maxShapes", "max_shapes", callback=_shapes, metavar="NAME:...", help="Largest ones.")
@click.option("--shapes", callback=_shapes, metavar="NAME:...", help="Fixed shapes, in place of those three.")
@click.option("--source", is_flag=True, help="Keep the program in the saved form, to rebuild from.")
@click.option("--no-verify", is_flag=True, help="Do not compare results before writing.")
@click.option("--workspace", type=int, metavar="BYTES", help="Most scratch memory of a layer.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fastest, 5 runs fastest.")
@click.option("--timing-cache", type=click.Path(dir_okay=False), help="Keep measured kernels there (full TensorRT).")
@click.option("--tf32", is_flag=True, help="Let fp32 products use TF32.")
@click.option("--version-compatible", is_flag=True, help="A plan that later versions load (full TensorRT).")
@click.option("--hardware-compatible", is_flag=True, help="A plan for every GPU from Ampere on (full TensorRT).")
@click.option("--kernel-specialization", type=click.Choice(["lazy", "eager", "none"]), help="For dynamic shapes (RTX).")
def compile_command(
    model: str,
    output: str | None,
    precision: str | None,
    calibration: str | None,
    target: str | None,
    device: str | None,
    backend: str,
    dynamic_batch: tuple[int, int, int] | None,
    source: bool,
    no_verify: bool,
    min_shapes: dict[str, tuple[int, ...]],
    opt_shapes: dict[str, tuple[int, ...]],
    max_shapes: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, ...]],
    **build: Any,
) -> None:
    """Compile MODEL: an ONNX model, an exported program (.pt2), or a module that was saved with its program.

    MODEL is data, and nothing of it is run as code. What is written is loaded with torchtrt_bridge.load(), or, a bare
    plan, by trtexec and TensorRT's own runtime.
    """
    from .importing import compile_file
    from .options import BuildOptions

    written = pathlib.Path(output) if output else pathlib.Path(model).with_suffix(".safetensors")
    if written.suffix not in _WRITERS:
        raise click.BadParameter(
            f"{written.name}: its ending must be one of {', '.join(_WRITERS)}", param_hint="--output"
        )
    if written.resolve() == pathlib.Path(model).resolve():
        raise click.BadParameter(f"{written} is MODEL itself; name another file", param_hint="--output")
    if not written.parent.is_dir():
        raise click.BadParameter(f"the folder {written.parent} does not exist", param_hint="--output")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)  # it was asked for by --device cpu
        module = compile_file(
            model,
            precision,
            target=target,
            device=device,
            backend=backend,
            ranges=_ranges(min_shapes, opt_shapes, max_shapes, shapes),
            dynamic_batch=dynamic_batch,
            build=BuildOptions(**build),
            verify=not no_verify,
            source=source,
            calibration=_calibration(calibration),
        )
    _WRITERS[written.suffix](module, written)
    click.echo(repr(module.report))
    click.echo(f"wrote        {written} ({written.stat().st_size / 2**20:.1f} MiB)")


def _ranges(
    smallest: dict[str, tuple[int, ...]],
    usual: dict[str, tuple[int, ...]],
    largest: dict[str, tuple[int, ...]],
    fixed: dict[str, tuple[int, ...]],
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Ranges by input. Without an opt shape the largest is the usual one, as trtexec has it the other way round."""
    if fixed and (smallest or usual or largest):
        raise click.UsageError("give --shapes, or --min-shapes and --max-shapes, not both")
    if set(smallest) != set(largest) or not set(usual) <= set(largest):
        raise click.UsageError("--min-shapes and --max-shapes must name the same inputs, and --opt-shapes no others")
    found = {name: (smallest[name], usual.get(name, largest[name]), largest[name]) for name in largest}
    return {**found, **{name: (shape, shape, shape) for name, shape in fixed.items()}}


def _calibration(path: str | None) -> Any:
    if path is None:
        return None
    from .quantization.calibration import Calibration

    return Calibration.from_table(path) if path.endswith(".cache") else Calibration.load(path)


def _save_state_dict(module: Any, path: pathlib.Path) -> None:
    import torch

    from .runtime.files import write_atomically

    write_atomically(path, lambda file: torch.save(module.state_dict(), file))


_WRITERS: dict[str, Callable[[Any, pathlib.Path], None]] = {
    ".safetensors": lambda module, path: module.save(path),
    ".pth": _save_state_dict,
    ".plan": lambda module, path: module.save_plan(path),
    ".engine": lambda module, path: module.save_plan(path),
}

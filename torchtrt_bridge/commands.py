"""The commands of :mod:`.cli`, in click."""

from __future__ import annotations

import json

import click

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

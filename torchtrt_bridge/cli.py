"""The command ``torchtrt-bridge``: a thin face on :mod:`.tools` and the compiler.

It ends with 0 where all went well, 1 where it failed, 2 where it was called wrongly. An error is the package's own
message on standard error; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Run the command line of this process, and end it."""
    try:
        import click
    except ImportError:
        if sys.argv[1:] == ["doctor"]:  # which is there to say that something is missing
            from .tools.doctor import doctor

            diagnosis = doctor()
            print(diagnosis)
            sys.exit(0 if diagnosis.works else 1)
        sys.exit("torchtrt-bridge: the command line needs click: pip install click")
    from .commands import commands
    from .errors import BridgeError, InvalidOption

    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        result: Any = commands.main(arguments, prog_name="torchtrt-bridge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("torchtrt-bridge: interrupted", err=True)
        sys.exit(130)
    except (BridgeError, OSError) as error:
        if debug:
            raise
        click.echo(f"torchtrt-bridge: {type(error).__name__}: {error}", err=True)
        sys.exit(2 if isinstance(error, InvalidOption) else 1)
    sys.exit(result or 0)

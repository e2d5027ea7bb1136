"""The command line: `align-transformers trace BASE SOURCE`, `align-transformers lens PROMPT`, ..., one file a command.

Nothing heavy is imported before there is something to do, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._errors import AlignError
from .._version import library_version
from .attend_command import attend
from .attribute_command import attribute
from .circuit_command import circuit
from .describe_command import describe
from .doctor_command import doctor
from .lens_command import lens
from .paths_command import paths
from .probe_command import probe
from .report_command import report
from .scan_command import scan
from .steer_command import steer
from .trace_command import trace

MISTAKE = 2  # exit status where the user asked for something that cannot be done

app = typer.Typer(
    name="align-transformers",
    help="Interventions on the internals of neural networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _command in (scan, trace, attribute, paths, circuit, lens, attend, steer, probe, describe, report):
    app.command(no_args_is_help=True)(_command)
app.command()(doctor)


def main() -> None:
    """Run the command line; a user's mistake ends it with status 2 and one line on stderr."""
    try:
        app()
    except (AlignError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"align-transformers: error: {message}", file=sys.stderr)
        sys.exit(MISTAKE)


def _version(asked: bool) -> bool:
    if asked:
        print(f"align-transformers {library_version()}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Interventions on the internals of neural networks: what happens if this activation had been another one?"""

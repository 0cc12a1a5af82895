"""The command `swav`."""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import signal
import sys
from typing import Any

import click
from click.exceptions import NoSuchCommand

from swav_platform.config.secrets import SecretsFilter, without_secrets
from swav_platform.errors import UsageError, UserError

TERMINATED = 143
_NO_SECRETS = SecretsFilter()

# command -> module of this folder, imported when the command runs, so that `swav --help` starts fast
_COMMANDS = {
    "demo": "demo",
    "index": "data",
    "pack": "data",
    "ledger": "data",
    "pretrain": "pretrain",
    "evaluate": "evaluate",
    "embed": "embed",
    "neighbours": "neighbours",
    "export": "export",
    "import": "imports",
    "health": "health",
    "replay": "replay",
    "promote": "promote",
    "serve": "serve",
    "query": "serve",
    "keys": "keys",
    "submit": "jobs",
    "status": "jobs",
    "logs": "jobs",
    "stop": "jobs",
    "list": "jobs",
    "doctor": "doctor",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"swav_platform.cli.{_COMMANDS[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="swav-platform", prog_name="swav")
def swav() -> None:
    """Train image encoders on your own images without labels; evaluate, serve and query them.

    \b
    All commands accept --debug, which shows tracebacks. Commands that report accept --json,
    which prints one JSON object as the last line of stdout.
    Exit codes: 0 success, 1 failure, 2 wrong use, 130 interrupted, 143 terminated.
    """


def entry() -> None:
    """Exit codes: 0 success, 1 failure, 2 wrong use, 130 SIGINT, 143 SIGTERM."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    debug = "--debug" in arguments or bool(os.environ.get("SWAV_DEBUG"))
    signal.signal(signal.SIGTERM, _terminated)
    logging.getLogger("swav").addFilter(_NO_SECRETS)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a run's letters must not end the run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        outcome: Any = swav.main([a for a in arguments if a != "--debug"], prog_name="swav", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(without_secrets(f"swav: {_wrong_use(error)}"), err=True)
        return error.exit_code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. Committed checkpoints are kept.", err=True)
        return 130
    except SystemExit as ended:
        if ended.code == TERMINATED:
            click.echo("Terminated. Committed checkpoints are kept.", err=True)
        return ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        if debug:
            raise
        click.echo(without_secrets(f"swav: {_paragraph(error)}"), err=True)
        return 2 if isinstance(error, UsageError) else 1


def _paragraph(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}. Check that it exists, its permissions, and that the disk is not full."
    return f"Unexpected {type(error).__name__}: {error}. This is a bug in swav; run again with --debug to see the traceback."


def _wrong_use(error: click.ClickException) -> str:
    """Click's error as one paragraph: what is wrong, the nearest known name, and the help to read."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        said, known = error.message, [] if context is None else [o for p in context.command.params for o in p.opts]
        near = difflib.get_close_matches(error.option_name, [*known, "--help", "--debug"], n=1)
    elif isinstance(error, NoSuchCommand):
        said, known = error.message, context.command.list_commands(context) if context else []
        near = difflib.get_close_matches(error.command_name, known, n=1, cutoff=0.5)
        said += "" if near else f" Known: {', '.join(known)}."
    else:
        said, near = error.format_message(), []
    hint = f" Did you mean {near[0]}?" if near else ""
    path = context.command_path if context else "swav"
    return f"{' '.join(said.split())}{hint} See `{path} --help`."


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(TERMINATED)  # runs `finally` blocks, which stop processes and mark the run as killed

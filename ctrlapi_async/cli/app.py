"""The commands of `ctrlapi-async`, put together; each has a module of its name."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import App, CycloptsError, Group, Parameter

from ctrlapi_async import __version__
from ctrlapi_async.cli import config, demo, simulate, status, stop
from ctrlapi_async.cli.exits import Exit, UsageError

EXAMPLES: Final = """\
Examples:

  ctrlapi-async stop 64 65 100-199 --project 2
      Stop those of these tasks that are running.

  ctrlapi-async status --all-active --watch 5
      Show the project's active tasks every 5 seconds, until there are none.

  ctrlapi-async demo
      See it work without a server.

Exit status:

  0    the server answered for every task
  1    some tasks were not found, ended before their stop, or have a status
       that is not known
  2    the command cannot be carried out as typed
  3    some tasks have no answer, or are still running
  4    nothing was done: no task has an answer, or you answered no
  5    the report could not be written
  129  the terminal was closed
  130  interrupted with Ctrl-C or SIGTERM; what is known is shown

Shell completion: ctrlapi-async --install-completion (bash, zsh, fish).
"""


app = App(
    name="ctrlapi-async",
    version=__version__,
    version_flags=["--version", "-V"],
    suppress_keyboard_interrupt=False,
    help="Stop many tasks of a Control API server at once, and see what became of each.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    group_parameters=Group("Parameters", sort_key=9),
)
for _command, _examples in (
    (stop.stop, stop.EXAMPLES),
    (status.status, status.EXAMPLES),
    (config.config, config.EXAMPLES),
    (demo.demo, demo.EXAMPLES),
    (simulate.simulate, simulate.EXAMPLES),
):
    app.command(_command, help_epilogue=_examples)
app.register_install_completion_command(help="Install shell completion for this shell.")


@app.command(name="help")
def help_(command: Annotated[str | None, Parameter(help="The command.")] = None) -> int:
    """Show the help of a command."""
    if command is not None and command not in app:
        raise UsageError(f"there is no command {command!r}: see ctrlapi-async --help")
    app.help_print([] if command is None else [command])
    return Exit.OK


def run(arguments: list[str]) -> int:
    """Carry out a command line and return the exit status.

    Args:
        arguments: The command's name, its options, and so on.

    Raises:
        UsageError: The command line is wrong.
    """
    # A lone - is the short form of --from -, which the parser would take for an option.
    words = [
        "--from=-" if word == "-" and before not in ("--from", "-f") else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    try:
        result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UsageError(f"{str(error).rstrip('.')}; --help shows what there is") from None
    return result if isinstance(result, int) else Exit.OK

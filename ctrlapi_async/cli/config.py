"""The command `config`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from ctrlapi_async.cli.exits import Exit, UnwrittenError
from ctrlapi_async.cli.options import NO_SERVER, NO_TASKS, ServerOptions, TaskOptions
from ctrlapi_async.cli.settings import find_settings
from ctrlapi_async.cli.streams import is_terminal, write
from ctrlapi_async.cli.tables import Rows, printed
from ctrlapi_async.cli.text import visible, without_secrets

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ctrlapi_async.cli.settings import Profile, Settings

EXAMPLES: Final = """\
Examples:

  ctrlapi-async config
      Show where settings are looked for, and which are in force.

  ctrlapi-async config --profile lab
      Show the settings that --profile lab brings.

  CTRLAPI_USER_ID=7 ctrlapi-async config
      Show how the environment changes them.

A configuration file looks like this:

  [default]
  url = "http://172.16.1.41"
  user_id = 1
  project = 2

  [lab]
  url = "https://lab.example.org"
  user_id = 7
  project = [3, 4]
  ca_file = "lab-ca.pem"
  api_key_file = "lab.key"

The profile [default] applies if no other is named. Instead of an API key, a profile can have
auth = "LOGIN" or auth = "LOGIN:PASSWORD". Relative paths start from the file's folder.
"""

_HIDDEN: Final = "********"


def config(*, more: TaskOptions = NO_TASKS, server: ServerOptions = NO_SERVER) -> int:
    """Show the settings that are in force, and where they come from.

    Options win over environment variables, and these over the profile.
    """
    settings = find_settings(server, more.projects)
    try:
        write(sys.stdout, printed(_drawn(settings), terminal=is_terminal(sys.stdout)))
    except OSError as error:
        raise UnwrittenError(error) from None
    return Exit.OK


def _drawn(settings: Settings) -> RenderableType:
    profile = settings.profile
    state = "" if profile.file.exists() else " (not there)"
    table = Rows("Setting", "Value", "From")
    for name, setting in settings.found.items():
        table.add(name, visible(_shown(name, setting.value)), visible(setting.origin))
    parts: list[RenderableType] = [
        Text(f"Configuration file: {visible(profile.file)}{state}"),
        Text(f"Profile: {_profile_in_words(profile)}"),
        Text(),
        table if settings.found else Text("No setting is given."),
    ]
    return Group(*parts)


def _profile_in_words(profile: Profile) -> str:
    if profile.name is None:
        return "none"
    return f"{visible(profile.name)} ({profile.chosen_by})"


def _shown(name: str, value: Any) -> str:  # noqa: ANN401 - each setting has its own type
    """Return a setting's value without what is secret in it."""
    if name == "url":
        return without_secrets(value)
    if name == "project":
        return ", ".join(map(str, value))
    if name == "api_key":
        return _HIDDEN
    login, colon, _ = str(value).partition(":")
    return f"{login}:{_HIDDEN}" if name == "auth" and colon else str(value)

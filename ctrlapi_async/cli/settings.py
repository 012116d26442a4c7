"""Which server is asked, and in whose name: options win over the environment, that over a profile.

A profile is a table of `config.toml` in the platform's configuration folder:

```toml
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
```
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from attrs import evolve, frozen
from platformdirs import user_config_path

from ctrlapi_async.cli.exits import UsageError
from ctrlapi_async.cli.options import expect_whole_number
from ctrlapi_async.cli.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ctrlapi_async.cli.options import ServerOptions

DEFAULT_PROFILE: Final = "default"


@frozen
class Setting:
    """A value that is in force.

    Attributes:
        value: The value.
        origin: Where it comes from, in words.
        base: The folder that a relative path in it starts from.
    """

    value: Any
    origin: str
    base: Path = Path()


@frozen
class Profile:
    """A profile of the configuration file; the empty one if none is in force.

    Attributes:
        file: The configuration file, whether it is there or not.
        name: The profile's name, or None.
        chosen_by: Who named it, in words.
        members: Its settings.
    """

    file: Path
    name: str | None
    chosen_by: str
    members: Mapping[str, Any]


@frozen
class Settings:
    """All that is in force.

    Attributes:
        profile: The profile that was used.
        found: The settings by name; one that is not given is not there.
    """

    profile: Profile
    found: Mapping[str, Setting]

    def get(self, name: str) -> Any:  # noqa: ANN401 - each setting has its own type
        """Return a setting's value, or None."""
        return self.found[name].value if name in self.found else None

    @property
    def projects(self) -> tuple[int, ...]:
        """The projects for tasks that are written without one."""
        return self.get("project") or ()


def read_url(value: object) -> str:
    """Return a server's address; raises ValueError."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ValueError("must be an address such as http://172.16.1.41")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text in quotes, not {value!r:.80}")  # noqa: TRY004 - one kind
    return value


def _number(value: object) -> int:
    # TOML has integers, everything else has text.
    return expect_whole_number(value if isinstance(value, str) else repr(value))


def _numbers(value: object) -> tuple[int, ...]:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(map(_number, several)))


@frozen
class _Kind:
    """A setting that can be given.

    Attributes:
        variable: The environment variable that gives it.
        read: Makes its value; raises ValueError.
        option: The option that gives it; without one there is none, and no profile has it.
    """

    variable: str
    read: Callable[[object], Any]
    option: str | None


_KINDS: Final = {
    "url": _Kind("CTRLAPI_URL", read_url, "--url"),
    "user_id": _Kind("CTRLAPI_USER_ID", _number, "--user-id"),
    "project": _Kind("CTRLAPI_PROJECT_ID", _numbers, "--project"),
    "ca_file": _Kind("CTRLAPI_CA_FILE", _text, "--ca-file"),
    "auth": _Kind("CTRLAPI_AUTH", _text, "--auth"),
    "api_key_file": _Kind("CTRLAPI_API_KEY_FILE", _text, "--api-key-file"),
    "api_key": _Kind("CTRLAPI_API_KEY", _text, None),
}
_CREDENTIALS: Final = ("auth", "api_key_file", "api_key")


def find_settings(options: ServerOptions, projects: Sequence[str] = ()) -> Settings:
    """Return the settings that are in force.

    Args:
        options: What the command line says about the server.
        projects: What it says about projects.

    Raises:
        UsageError: One of them is wrong, or the profile cannot be read.
    """
    given = {
        "url": options.url,
        "user_id": options.user_id,
        "project": tuple(projects) or None,
        "ca_file": options.ca_file,
        "auth": options.auth,
        "api_key_file": options.api_key_file,
    }
    profile = find_profile(options.profile)
    layers = (
        {
            name: Setting(value, str(_KINDS[name].option))
            for name, value in given.items()
            if value is not None
        },
        {
            name: Setting(value, kind.variable)
            for name, kind in _KINDS.items()
            if (value := os.environ.get(kind.variable))  # an empty one counts as unset
        },
        {
            name: Setting(value, f"profile {profile.name}", profile.file.parent)
            for name, value in profile.members.items()
        },
    )
    found: dict[str, Setting] = {}
    for layer in layers:
        credentials = [name for name in _CREDENTIALS if name in layer]
        if len(credentials) > 1:
            labels = " and ".join(_label(name, layer[name]) for name in credentials[:2])
            raise UsageError(f"{labels} are two ways to log in: give one of them")
        # A login on the command line replaces an API key of the profile.
        taken = any(name in found for name in _CREDENTIALS)
        for name, setting in layer.items():
            if name not in found and not (taken and name in _CREDENTIALS):
                found[name] = setting
    return Settings(
        profile, {name: _checked(name, found[name]) for name in _KINDS if name in found}
    )


def _checked(name: str, setting: Setting) -> Setting:
    try:
        value = _KINDS[name].read(setting.value)
    except ValueError as error:
        raise UsageError(f"{_label(name, setting)} {error}") from None
    return evolve(setting, value=value)


def _label(name: str, setting: Setting) -> str:
    """Return what to call a setting in an error: --auth, CTRLAPI_AUTH, or auth in profile lab."""
    in_profile = setting.origin not in (_KINDS[name].option, _KINDS[name].variable)
    return f"{name} in {setting.origin}" if in_profile else setting.origin


def config_file() -> Path:
    """Return the path of the configuration file, whether it is there or not."""
    return user_config_path("ctrlapi-async", appauthor=False) / "config.toml"


def find_profile(option: str | None) -> Profile:
    """Return the profile that is in force; raises `UsageError`."""
    file = config_file()
    name, chosen_by = option or None, "--profile"
    if name is None:
        name, chosen_by = os.environ.get("CTRLAPI_PROFILE") or None, "CTRLAPI_PROFILE"
    found = _read_config(file)
    if found is None:
        if name is not None:
            raise UsageError(f"there is no profile {name!r}: {file} is not there")
        return Profile(file, None, "", {})
    tables, readable_by_others = found
    if name is None:
        if DEFAULT_PROFILE not in tables:
            return Profile(file, None, "", {})
        name, chosen_by = DEFAULT_PROFILE, "applies if no other is named"
    if name not in tables:
        raise UsageError(
            f"there is no profile {name!r} in {file}; it has {', '.join(tables) or 'none'}"
        )
    members = tables[name]
    _check_members(file, name, members)
    if readable_by_others and ":" in str(members.get("auth", "")):
        raise UsageError(
            f"{file} holds a password and others can read it: chmod 600 {file}, or leave the "
            "password out to be asked for it"
        )
    return Profile(file, name, chosen_by, members)


def _read_config(file: Path) -> tuple[dict[str, dict[str, Any]], bool] | None:
    """Return the profiles of a file and whether others can read it, or None if there is none."""
    try:
        with file.open("rb") as opened:
            tables = tomllib.load(opened)
            readable_by_others = _readable_by_others(opened.fileno())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{file} is no TOML: {error}") from None
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{file}: {visible(key)} stands outside of a profile: put a line "
                f"[{DEFAULT_PROFILE}] above it"
            )
    return tables, readable_by_others


def _check_members(file: Path, profile: str, members: Mapping[str, Any]) -> None:
    known = [name for name, kind in _KINDS.items() if kind.option]
    for name in members:
        if name not in known:
            raise UsageError(
                f"profile {profile} in {file} has an unknown setting {visible(name)!r}; there are "
                f"{', '.join(known)}"
            )


def _readable_by_others(number: int) -> bool:
    # Windows has no such bits.
    return os.name == "posix" and bool(os.fstat(number).st_mode & 0o077)


def read_secret_file(setting: Setting) -> str:
    """Return the one line of a file that only its owner can read; raises `UsageError`."""
    path = setting.base / Path(setting.value).expanduser()
    try:
        with path.open(encoding="utf-8-sig") as opened:
            if _readable_by_others(opened.fileno()):
                raise UsageError(f"{path} can be read by others: chmod 600 {path}")
            lines = opened.read(10_000).split()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        lines = []
    if len(lines) != 1:
        raise UsageError(f"{path} must hold one API key, and nothing else")
    return lines[0]

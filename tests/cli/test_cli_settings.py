"""Profiles, environment and options: which wins, what is refused, what `config` shows."""

from __future__ import annotations

import base64
import errno
import getpass
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.options import duration
from tests.cli.support import World

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.support import Call


KEY = base64.b64encode(b"a secret of some length").decode()
FILE = """
[default]
url = "http://profile.example"
user_id = 1
project = 2

[lab]
url = "http://joe:pw@lab.example:8080"
user_id = 7
project = [3, 4]
ca_file = "ca.pem"
auth = "ann"
"""


def shown(call: Call, *argv: str) -> dict[str, tuple[str, str]]:
    """Return the settings that `config` shows, with where they come from."""
    result = call(None, "config", *argv)
    assert (result.status, result.err) == (Exit.OK, "")
    rows = result.out.partition("Setting ")[2].splitlines()[1:]
    cells = [[cell.strip() for cell in row.split("  ") if cell] for row in rows]
    return {name: (value, origin) for name, value, origin in cells}


def test_options_win_over_the_environment_and_that_over_the_profile(
    call: Call, config_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config_folder / "config.toml").write_text(FILE)
    assert shown(call) == {
        "url": ("http://profile.example", "profile default"),
        "user_id": ("1", "profile default"),
        "project": ("2", "profile default"),
    }
    monkeypatch.setenv("CTRLAPI_PROFILE", "lab")
    monkeypatch.setenv("CTRLAPI_USER_ID", "8")
    monkeypatch.setenv("CTRLAPI_PROJECT_ID", " 5, 6 5")
    monkeypatch.setenv("CTRLAPI_CA_FILE", "")
    lab = {
        "url": ("http://***@lab.example:8080", "profile lab"),
        "user_id": ("9", "--user-id"),
        "project": ("5, 6", "CTRLAPI_PROJECT_ID"),
        "ca_file": ("ca.pem", "profile lab"),
    }
    assert shown(call, "--user-id", "9") == lab | {"auth": ("ann", "profile lab")}
    # A login replaces that of a lower layer, of whatever kind.
    monkeypatch.setenv("CTRLAPI_API_KEY", KEY)
    assert shown(call, "--user-id", "9") == lab | {"api_key": ("********", "CTRLAPI_API_KEY")}
    auth = {"auth": ("joe:********", "--auth")}
    assert shown(call, "--user-id", "9", "--auth", "joe:pw") == lab | auth
    assert shown(call, "-p", "1", "--profile", "default")["project"] == ("1", "--project")


def test_config_tells_where_it_looks(
    call: Call, config_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_folder / "config.toml"
    monkeypatch.setattr("ctrlapi_async.cli.tables.WIDTH", 1000)
    assert call(None, "config").out == (
        f"Configuration file: {path} (not there)\nProfile: none\n\nNo setting is given.\n"
    )
    path.write_text(FILE)
    start = f"Configuration file: {path}\nProfile: "
    assert call(None, "config").out.startswith(f"{start}default (applies if no other is named)\n")
    lab = call(None, "config", "--profile", "lab").out
    assert lab.startswith(f"{start}lab (--profile)\n")
    monkeypatch.setenv("CTRLAPI_PROFILE", "lab")
    assert call(None, "config").out.startswith(f"{start}lab (CTRLAPI_PROFILE)\n")
    path.write_text("[lab]")
    monkeypatch.setenv("CTRLAPI_PROFILE", "")
    assert call(None, "config").out.startswith(f"{start}none\n")


@pytest.mark.parametrize(
    ("text", "argv", "words"),
    [
        (None, ("--profile", "lab"), "there is no profile 'lab': {} is not there"),
        (FILE, ("--profile", "lap"), "there is no profile 'lap' in {}; it has default, lab"),
        ("", ("--profile", "lab"), "there is no profile 'lab' in {}; it has none"),
        ("a folder", (), "{} cannot be read: Is a directory"),
        ("[x", (), "{} is no TOML: "),
        ("\xff", (), "{} is no TOML: "),
        ('url = "x"', (), "{}: url stands outside of a profile: put a line [default] above it"),
        ("[default]\nurk = 1", (), "profile default in {} has an unknown setting 'urk'; there are"),
        ("[default]\nurl = 1", (), "url in profile default must be a text in quotes, not 1"),
        ('[default]\nuser_id = "x"', (), "user_id in profile default must be a whole number, 0 or"),
        ("[default]\nuser_id = true", (), "user_id in profile default must be a whole number"),
        ("[default]\nproject = [-1]", (), "project in profile default must be a whole number"),
        (
            '[default]\nauth = "a"\napi_key_file = "k"',
            (),
            "auth in profile default and api_key_file in profile default are two ways to log in",
        ),
        (
            '[default]\nauth = "joe:pw"',
            (),
            "{} holds a password and others can read it: chmod 600 {}, or leave the password out",
        ),
    ],
)
def test_profiles_that_cannot_be_used(
    call: Call, config_folder: Path, text: str | None, argv: tuple[str, ...], words: str
) -> None:
    path = config_folder / "config.toml"
    if text == "a folder":
        path.mkdir()
    elif text is not None:
        path.write_text(text, encoding="latin-1")
    result = call(None, "config", *argv)
    assert (result.status, result.out) == (Exit.USAGE, "")
    assert result.err.startswith("error: " + words.format(path, path))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("0.5", 0.5), (".5m", 30), ("1.", 1)],
)
def test_times(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("argv", "variable", "words"),
    [
        ("1", "URL", "no server is given: use --url, set CTRLAPI_URL, or write url into a"),
        ("1", "USER_ID", "no user is given: use --user-id, set CTRLAPI_USER_ID, or write user_id"),
        ("1", "PROJECT_ID", "no project is given: use --project, set CTRLAPI_PROJECT_ID, or write"),
        ("--all-active", "PROJECT_ID", "no project is given: use --project, or set"),
    ],
)
def test_what_is_not_given_is_asked_for(
    call: Call, monkeypatch: pytest.MonkeyPatch, argv: str, variable: str, words: str
) -> None:
    given = {"URL": "http://127.0.0.1:1", "USER_ID": "1", "PROJECT_ID": "2"}
    for name, value in (given | {variable: ""}).items():
        monkeypatch.setenv(f"CTRLAPI_{name}", value)
    result = call(None, "stop", argv)
    assert result.status == Exit.USAGE
    assert words in result.err


# --- ways to log in -------------------------------------------------------------------------------


def test_a_login_from_a_profile_or_the_environment_is_never_shown(
    call: Call, world: World, config_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.login = ("joe", "s3cret:pw")
    path = config_folder / "config.toml"
    path.write_text('[default]\nauth = "joe:s3cret:pw"')
    path.chmod(0o600)
    assert call(world, "status", "1").status == Exit.OK
    assert "s3cret" not in call(None, "config").out
    path.unlink()
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:s3cret:pw")
    assert call(world, "status", "1").status == Exit.OK
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:wrong")
    result = call(world, "status", "1", "--debug")
    assert result.status == Exit.NOTHING
    assert "wrong" not in result.err + result.out


@pytest.mark.parametrize(
    "answer", ["s3cret", EOFError(), getpass.GetPassWarning(), OSError(errno.ENXIO, "")], ids=repr
)
def test_a_password_is_asked_for(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    def ask(prompt: str) -> str:
        assert prompt == "Password of joe: "
        if isinstance(answer, Exception):
            raise answer
        return answer

    world.login = ("joe", "s3cret")
    monkeypatch.setattr(getpass, "getpass", ask)
    result = call(world, "status", "1", "--auth", "joe")
    assert result.status == (Exit.OK if answer == "s3cret" else Exit.USAGE)
    assert ("set CTRLAPI_AUTH=LOGIN:PASSWORD" in result.err) is (answer != "s3cret")


@pytest.mark.parametrize("prefix", ["", "ann:"])
def test_an_api_key(
    call: Call, config_folder: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    path = config_folder / "lab.key"
    path.write_text(f"{prefix}{KEY}\n")
    path.chmod(0o600)
    with World(api_key=KEY, access_id=prefix[:-1] or None) as api:
        api.add_task(1)
        assert call(api, "status", "1", "--api-key-file", str(path)).status == Exit.OK
        (config_folder / "config.toml").write_text('[default]\napi_key_file = "lab.key"')
        assert call(api, "status", "1").status == Exit.OK
        monkeypatch.setenv("CTRLAPI_API_KEY", base64.b64encode(b"another").decode())
        refused = call(api, "status", "1")
        assert (refused.status, "HTTP 401" in refused.err) == (Exit.NOTHING, True)
        monkeypatch.setenv("CTRLAPI_API_KEY", "not base64")
        assert "the API key cannot be used: secret is not base64" in call(api, "status", "1").err


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (KEY, 0o640, "{} can be read by others: chmod 600 {}"),
        ("", 0o600, "{} must hold one API key, and nothing else"),
        (f"{KEY} {KEY}", 0o600, "{} must hold one API key, and nothing else"),
        ("\xff", 0o600, "{} must hold one API key, and nothing else"),
    ],
)
def test_files_that_hold_no_api_key(
    call: Call, world: World, tmp_path: Path, *, text: str, mode: int, words: str
) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="latin-1")
    path.chmod(mode)
    result = call(world, "status", "1", "--api-key-file", str(path))
    assert result.status == Exit.USAGE
    assert result.err == f"error: {words.format(path, path)}\n"


def test_tls(call: Call, config_folder: Path) -> None:
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(config_folder / "ca.pem")
    with World(ssl_context=context) as api:
        api.add_task(1)
        refused = call(api, "status", "1")
        assert refused.status == Exit.NOTHING
        assert "was refused" in refused.err
        assert "; name the certificate's CA with --ca-file, or see whether --url" in refused.err
        named = call(api, "status", "1", "--ca-file", str(config_folder / "ca.pem"))
        assert (named.status, named.err) == (Exit.OK, "")
        (config_folder / "config.toml").write_text('[default]\nca_file = "ca.pem"')
        assert call(api, "status", "1").status == Exit.OK
        insecure = call(api, "status", "1", "--insecure")
        assert insecure.status == Exit.OK
        assert insecure.err == "warning: the server's certificate is not checked (--insecure)\n"
        assert call(api, "status", "1", "--insecure", "-q").err == ""

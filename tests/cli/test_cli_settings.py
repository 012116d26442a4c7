"""Profiles, environment and options: which wins, what is refused, what `config` shows."""

from __future__ import annotations

import base64
import errno
import getpass
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from ctrlapi_async import cli
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
    assert shown(call, "--user-id", "9") == {
        "url": ("http://***@lab.example:8080", "profile lab"),
        "user_id": ("9", "--user-id"),
        "project": ("5, 6", "CTRLAPI_PROJECT_ID"),
        "ca_file": ("ca.pem", "profile lab"),
        "auth": ("ann", "profile lab"),
    }
    assert shown(call, "-p", "1", "--profile", "default")["project"] == ("1", "--project")


def test_a_login_replaces_that_of_a_lower_layer(
    call: Call, config_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config_folder / "config.toml").write_text(FILE)
    monkeypatch.setenv("CTRLAPI_API_KEY", KEY)
    settings = shown(call, "--profile", "lab")
    assert settings["api_key"] == ("********", "CTRLAPI_API_KEY")
    assert "auth" not in settings
    settings = shown(call, "--auth", "joe:pw")
    assert settings["auth"] == ("joe:********", "--auth")
    assert "api_key" not in settings


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
        ("[x", (), "{} is no TOML: "),
        ("\xff", (), "{} is no TOML: "),
        ('url = "x"', (), "{}: url stands outside of a profile: put a line [default] above it"),
        ("[default]\nurk = 1", (), "profile default in {} has an unknown setting 'urk'; there are"),
        ("[default]\nurl = 1", (), "url in profile default must be a text in quotes, not 1"),
        ('[default]\nuser_id = "x"', (), "user_id in profile default must be a whole number, 0 or"),
        ("[default]\nuser_id = 1.5", (), "user_id in profile default must be a whole number, 0 or"),
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
    if text is not None:
        path.write_text(text, encoding="latin-1")
    result = call(None, "config", *argv)
    assert (result.status, result.out) == (Exit.USAGE, "")
    assert result.err.startswith("error: " + words.format(path, path))


def test_a_configuration_that_cannot_be_read(call: Call, config_folder: Path) -> None:
    (config_folder / "config.toml").mkdir()
    result = call(None, "config")
    assert result.status == Exit.USAGE
    assert "config.toml cannot be read: Is a directory" in result.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("0.5", 0.5), (".5m", 30), ("1.", 1)],
)
def test_times(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("URL", "no server is given: use --url, set CTRLAPI_URL, or write url into a profile"),
        ("USER_ID", "no user is given: use --user-id, set CTRLAPI_USER_ID, or write user_id into"),
        ("PROJECT_ID", "no project is given: use --project, set CTRLAPI_PROJECT_ID, or write"),
    ],
)
def test_what_is_not_given_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    words: str,
) -> None:
    for name in {"URL", "USER_ID", "PROJECT_ID"} - {variable}:
        monkeypatch.setenv(f"CTRLAPI_{name}", "http://127.0.0.1:1" if name == "URL" else "1")
    monkeypatch.setenv(f"CTRLAPI_{variable}", "")
    assert cli.main(["stop", "1"]) == Exit.USAGE
    assert words in capsys.readouterr().err
    if variable == "PROJECT_ID":
        assert cli.main(["stop", "--all-active"]) == Exit.USAGE
        assert "no project is given: use --project, or set" in capsys.readouterr().err


# --- ways to log in -------------------------------------------------------------------------------


def test_a_login_from_the_environment(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.login = ("joe", "s3cret:pw")
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:s3cret:pw")
    assert call(world, "status", "1").status == Exit.OK
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:wrong")
    result = call(world, "status", "1", "--debug")
    assert result.status == Exit.NOTHING
    assert "wrong" not in result.err + result.out


def test_a_password_is_asked_for(call: Call, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"Password of joe: ": "s3cret", "Password of ann: ": EOFError()}
    answers["Password of eve: "] = getpass.GetPassWarning()
    answers["Password of sue: "] = OSError(errno.ENXIO, "")

    def ask(prompt: str) -> str:
        if isinstance(answers[prompt], Exception):
            raise answers[prompt]
        return str(answers[prompt])

    world.login = ("joe", "s3cret")
    monkeypatch.setattr(getpass, "getpass", ask)
    assert call(world, "status", "1", "--auth", "joe").status == Exit.OK
    for login in ("ann", "eve", "sue"):
        result = call(world, "status", "1", "--auth", login)
        assert result.status == Exit.USAGE
        assert "set CTRLAPI_AUTH=LOGIN:PASSWORD" in result.err


def test_a_profile_with_a_password(call: Call, config_folder: Path) -> None:
    path = config_folder / "config.toml"
    with World(login=("joe", "pw")) as api:
        api.add_task(1)
        path.write_text('[default]\nauth = "joe:pw"')
        path.chmod(0o600)
        assert call(api, "status", "1").status == Exit.OK
    assert "pw" not in call(None, "config").out


@pytest.mark.parametrize("access_id", [None, "ann"])
def test_an_api_key(
    call: Call, config_folder: Path, monkeypatch: pytest.MonkeyPatch, access_id: str | None
) -> None:
    path = config_folder / "lab.key"
    path.write_text(f"{access_id}:{KEY}\n" if access_id else f"{KEY}\n")
    path.chmod(0o600)
    with World(api_key=KEY, access_id=access_id) as api:
        api.add_task(1)
        assert call(api, "status", "1", "--api-key-file", str(path)).status == Exit.OK
        (config_folder / "config.toml").write_text('[default]\napi_key_file = "lab.key"')
        assert call(api, "status", "1").status == Exit.OK
        monkeypatch.setenv("CTRLAPI_API_KEY", base64.b64encode(b"another").decode())
        refused = call(api, "status", "1")
        assert refused.status == Exit.NOTHING
        assert "HTTP 401" in refused.err
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

"""How the tests run the command line: as a process, in this process, with pipes, on terminals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from ctrlapi_async.simulator import ControlApiSimulator, Rewrite

World = ControlApiSimulator
ROOT = Path(__file__).parents[2]
COMMANDS = ("stop", "status", "config", "demo", "simulate")
PATIENCE = 20.0
"""Seconds after which something that should have come counts as missing."""

# A process gets a terminal of its own, whose Ctrl-C and end reach it, by opening it.
ON_TERMINAL = (
    "import os, sys; os.close(os.open(sys.argv.pop(1), os.O_RDWR)); "
    "from ctrlapi_async.cli import main; sys.exit(main())"
)


class Result(NamedTuple):
    status: int
    out: str
    err: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def results(self) -> dict[int, str]:
        return {row["task_id"]: row.get("result", row["status"]) for row in self.rows}


Call = Callable[..., Result]
OnTerminal = Callable[..., Result]


def environment(api: World | None) -> dict[str, str]:
    names = {"CTRLAPI_USER_ID": "1", "CTRLAPI_PROJECT_ID": "2", "TERM": "xterm-256color"}
    server = {} if api is None else {"CTRLAPI_URL": api.url}
    dropped = ("CTRLAPI_", "COV_", "COVERAGE_", "NO_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(ROOT), **names, **server}


def start(
    api: World | None,
    *argv: str,
    stdin: Any = subprocess.PIPE,
    stdout: Any = subprocess.PIPE,
    stderr: Any = subprocess.PIPE,
    start_new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start Python, with pipes for all standard streams unless the arguments say otherwise."""
    return subprocess.Popen(
        [sys.executable, *argv],
        env=environment(api),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=start_new_session,
    )


def process(api: World | None, *argv: str) -> subprocess.Popen[bytes]:
    """Start the command line as a process."""
    return start(api, "-m", "ctrlapi_async", *argv)


def ended(running: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    with running:
        out, err = running.communicate(stdin, timeout=PATIENCE)
    return Result(running.returncode, (out or b"").decode(), (err or b"").decode())


class Pseudoterminal:
    """A terminal that shows what a command writes, and types what a person would."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.streams = [os.fdopen(os.dup(theirs), mode) for mode in ("r", "w", "w")]
        self._path = os.ttyname(theirs)
        os.close(theirs)
        self.raw = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        os.close(self._ours)

    def start(self, api: World, *argv: str) -> subprocess.Popen[bytes]:
        """Start the command line as a process whose terminal this is."""

        streams = dict(zip(("stdin", "stdout", "stderr"), self.streams, strict=True))
        return start(api, "-c", ON_TERMINAL, self._path, *argv, **streams, start_new_session=True)

    def release(self) -> None:
        """Let go of the command's side, so that its end can be seen."""
        for stream in self.streams:
            stream.close()

    def finish(self) -> None:
        """Wait until all is shown that the command, which has ended, wrote."""
        self.release()
        self._reader.join(PATIENCE)

    def hang_up(self) -> None:
        """Close the terminal's window."""
        self.release()
        os.close(self._ours)
        self._ours = os.open(os.devnull, os.O_RDONLY)

    def _read(self) -> None:
        shown = b""
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                return
            if not piece:  # it was hung up
                return
            with self._news:
                shown += piece
                self.raw = shown.decode(errors="replace").replace("\r\n", "\n")
                self._news.notify_all()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> bool:
        """Wait until a text is shown; return whether it was."""
        with self._news:
            return self._news.wait_for(lambda: text in self.screen, PATIENCE)

    @property
    def screen(self) -> str:
        """What is shown at last, and what has scrolled away above it, without colours."""
        lines = [""]
        row = 0
        pieces = r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)"
        for sequence, text in re.findall(pieces, self.raw):
            if sequence == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif sequence == "\x1b[1A":
                row -= 1
            elif sequence == "\x1b[2K":
                lines[row] = ""
            lines[row] += text
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def renamed(old: str, new: str) -> Rewrite:
    """Return the fault that changes a text in a reply."""
    return Rewrite(
        lambda reply: json.loads(json.dumps(reply).replace(json.dumps(old), json.dumps(new)))
    )

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ctrlapi_async.simulator import Rewrite

if TYPE_CHECKING:
    from types import TracebackType

    from ctrlapi_async.simulator import ControlApiSimulator

ROOT = Path(__file__).parents[2]
COMMANDS = ("stop", "status", "config", "demo", "simulate")
PATIENCE = 10.0
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
        return {row["task_id"]: row["result"] for row in self.rows}


def environment(api: ControlApiSimulator | None, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CTRLAPI_", "COV_", "COVERAGE_")) and name != "NO_COLOR"
    }
    server = {} if api is None else {"CTRLAPI_URL": api.url}
    names = {"CTRLAPI_USER_ID": "1", "CTRLAPI_PROJECT_ID": "2", "TERM": "xterm-256color"}
    return {**kept, "PYTHONPATH": str(ROOT), **names, **server, **more}


def process(
    api: ControlApiSimulator | None, *argv: str, env: dict[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    """Start the command line as a process, with pipes unless `streams` says otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "ctrlapi_async", *argv],
        **{**pipes, **streams},
        env=environment(api, **(env or {})),
        cwd="/",
    )


def ended(running: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    with running:
        out, err = running.communicate(stdin, timeout=PATIENCE)
    return Result(running.returncode, (out or b"").decode(), (err or b"").decode())


def piped(api: ControlApiSimulator | None, *argv: str, stdin: bytes = b"") -> Result:
    """Run a command as a process with pipes for standard input, output and error."""
    return ended(process(api, *argv), stdin)


class Pseudoterminal:
    """A terminal that shows what a command writes, and types what a person would."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.streams = [os.fdopen(os.dup(theirs), mode) for mode in ("r", "w", "w")]
        self.path = os.ttyname(theirs)
        os.close(theirs)
        self._shown = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()
        os.close(self._ours)

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
        os.close(self._ours)
        self._ours = os.open(os.devnull, os.O_RDONLY)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                piece = b""
            with self._news:
                self._shown += piece.decode(errors="replace")
                self._news.notify_all()
            if not piece:
                return

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> bool:
        """Wait until a text is shown; return whether it was."""
        with self._news:
            return self._news.wait_for(lambda: text in self.screen, PATIENCE)

    def start(self, api: ControlApiSimulator, *argv: str) -> subprocess.Popen[bytes]:
        """Start the command line as a process whose terminal this is."""
        stdin, stdout, stderr = self.streams
        return subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, self.path, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(api),
            start_new_session=True,
        )

    @property
    def raw(self) -> str:
        """All that was written, with the terminal's control sequences."""
        return self._shown.replace("\r\n", "\n")

    @property
    def screen(self) -> str:
        """What is shown at last, and what has scrolled away above it, without colours."""
        lines = [""]
        row = 0
        for sequence, text in re.findall(
            r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", self._shown
        ):
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


def without_times(text: str) -> str:
    """Return a screen with the seconds, which differ each time, as 0.00."""
    return re.sub(r"\d+\.\d\d s", "0.00 s", text)

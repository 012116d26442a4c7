"""Debian's nginx, Varnish and HAProxy in front of a server, and a session that goes through them.

They write to a directory of their own and listen on a free port of the loopback interface, as any
user. nginx and HAProxy inherit a socket that listens already: so the port is surely free, and
nobody needs to wait until they are up.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import pytest
from attrs import frozen

from ctrlapi_async import Batching, ControlSession, RetryPolicy
from tests.support.clock import HURRY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Debian keeps the programs out of the PATH of ordinary users.
_PATH: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))


# --- a session behind a proxy ---------------------------------------------------------------------

STUBBORN: Final = RetryPolicy(attempts=1000, wait_initial=0.001, wait_max=0.01)
"""As many repeats as it takes, at once: for tests of what is repeated, not of when."""


@frozen
class Passage:
    """A session behind a proxy, and the answers that came through it."""

    session: ControlSession
    proxy: Proxy
    statuses: Counter[int]
    answered: asyncio.Event

    async def saw(self, status: int) -> None:
        """Wait for an answer with an HTTP status."""
        while not self.statuses[status]:
            self.answered.clear()
            await self.answered.wait()


@asynccontextmanager
async def behind(
    starting: AbstractContextManager[Proxy],
    *,
    retry: RetryPolicy = STUBBORN,
    batching: Batching = Batching(),  # noqa: B008 - frozen
    **options: Any,
) -> AsyncIterator[Passage]:
    """Start a proxy, and open a session through it."""
    statuses, answered = Counter[int](), asyncio.Event()

    async def note(_: object, __: object, answer: aiohttp.TraceRequestEndParams) -> None:
        statuses[answer.response.status] += 1
        answered.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(note)
    # Nothing here is about these times, and a clock that hurries must not make them short.
    options |= {"request_timeout": 30 * HURRY, "connect_timeout": 10 * HURRY}
    options |= {"retry": retry, "batching": batching}
    with starting as proxy:
        async with (
            aiohttp.ClientSession(trace_configs=[trace]) as client,
            ControlSession(proxy.url, 1, client=client, **options) as session,
        ):
            yield Passage(session, proxy, statuses, answered)


# --- the proxies ----------------------------------------------------------------------------------


class Served(NamedTuple):
    """One request, as nginx logged it."""

    connection: str
    status: int
    method: str


@frozen
class Proxy:
    """A proxy that runs."""

    root: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reload(self) -> None:
        """Make an nginx read its config again; connections end after their request."""
        self.process.send_signal(signal.SIGHUP)

    def kill_worker(self) -> None:
        """Kill the only worker of an nginx, which then starts another."""
        master = self.process.pid
        [worker] = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)

    @property
    def served(self) -> list[Served]:
        """The requests that nginx has answered; all of them once it has stopped."""
        lines = (line.split() for line in (self.root / "access.log").read_text().splitlines())
        return [Served(connection, int(status), method) for connection, status, method in lines]


def spare_port() -> int:
    """Return a port that nobody listens on, and that the system gives to no client."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # `random` is seeded alike in all processes
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def _running(
    root: Path, port: int, package: str, *command: str, fds: tuple[int, ...] = (), **env: str
) -> Iterator[Proxy]:
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        pytest.skip(f"{command[0]} is missing: apt-get install --no-install-recommends {package}")
    with (root / "output").open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            env={"PATH": _PATH, **env},
        )
    try:
        yield Proxy(root, port, process)
    finally:
        process.terminate()
        code = process.wait(10)
    assert code in (0, 143, -signal.SIGTERM), (root / "output").read_text()


_NGINX: Final = """
daemon off;
{user}
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    log_format terse '$connection $status $request_method';
    access_log {root}/access.log terse;
    client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    upstream api {{ server 127.0.0.1:{upstream}; keepalive 8; }}
    {http}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            {location}
        }}
    }}
}}
"""


@contextmanager
def nginx(root: Path, upstream: int, location: str = "", *, http: str = "") -> Iterator[Proxy]:
    """Run an nginx in front of a port, with directives for all paths and for all servers."""
    root.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        # Its workers would be another user's else, who may not write here.
        user = "user root;" if os.geteuid() == 0 else ""
        config = root / "nginx.conf"
        config.write_text(_NGINX.format(**locals()))
        command = ("nginx", "-e", f"{root}/error.log", "-p", str(root), "-c", str(config))
        with _running(root, port, "nginx", *command, fds=(fd,), NGINX=f"{fd};") as proxy:
            yield proxy


_HAPROXY: Final = """
global
    maxconn 1000
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    retries 0
    {defaults}
frontend api
    bind fd@{fd}
    default_backend servers
backend servers
    {backend}
    server one 127.0.0.1:{upstream}
"""


@contextmanager
def haproxy(root: Path, upstream: int, defaults: str = "", *, backend: str = "") -> Iterator[Proxy]:
    """Run an HAProxy in front of a port, with lines for two sections of its config."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        config = root / "haproxy.cfg"
        config.write_text(_HAPROXY.format(**locals()))
        command = ("haproxy", "-db", "-f", str(config))
        with _running(root, port, "haproxy", *command, fds=(fd,)) as proxy:
            yield proxy


# What differs from test to test comes with the request: to compile a VCL takes a second.
_VCL: Final = """
vcl 4.1;
import std;
backend default { .host = "127.0.0.1"; .port = "%d"; }
sub vcl_recv {
    std.cache_req_body(1MB);  # else there is nothing to be sent again
}
sub vcl_backend_fetch {
    set bereq.http.Connection = "close";  # the server of the test before has gone
    set bereq.first_byte_timeout = std.duration(bereq.http.X-First-Byte, 60s);
}
sub vcl_backend_error {
    if (bereq.retries < std.integer(bereq.http.X-Retries, 0)) { return (retry); }
}
"""


@contextmanager
def varnish(root: Path, upstream: int) -> Iterator[Proxy]:
    """Run a Varnish that obeys the headers `X-First-Byte` (seconds) and `X-Retries`."""
    vcl = root / "default.vcl"
    vcl.write_text(_VCL % upstream)
    port = spare_port()
    command = ("varnishd", "-F", "-j", "none", "-n", f"{root}/work", "-f", str(vcl), "-T", "none")
    # A server that refused a connection in the test before may be there again.
    options = ("-a", f"127.0.0.1:{port}", "-p", "backend_remote_error_holddown=0")
    with _running(root, port, "varnish", *command, *options) as proxy:
        while True:
            assert proxy.process.poll() is None, (root / "output").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield proxy

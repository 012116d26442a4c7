"""Debian's nginx, Varnish and HAProxy in front of a server, and a client that sees their answers.

They write to a directory of their own and listen on a free port of the loopback interface, as any
user. nginx and HAProxy inherit a socket that listens already: so the port is surely free, and
nobody needs to wait until they are up.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import aiohttp
import pytest
from attrs import frozen

from tests.support.clock import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

P = ParamSpec("P")

HURRY: Final = 20
"""How many seconds of a `HurryingLoop` pass in one."""

# Debian keeps the programs out of the PATH of ordinary users.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a program is missing."""
    return pytest.mark.skipif(
        shutil.which(program, path=_PATH) is None,
        reason=f"{program} is missing: apt-get install --no-install-recommends {package}",
    )


NEEDS_NGINX = needs("nginx", "nginx")
NEEDS_VARNISH = needs("varnishd", "varnish")
NEEDS_HAPROXY = needs("haproxy", "haproxy")


# --- time -----------------------------------------------------------------------------------------


class _HurryingSelector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return super().select(None if timeout is None else timeout / HURRY)


class HurryingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs fast: `HURRY` requests a second of a proxy are one here."""

    def __init__(self) -> None:
        super().__init__(_HurryingSelector())

    def time(self) -> float:
        return time.monotonic() * HURRY


def hurrying(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test run on a `HurryingLoop`."""

    @functools.wraps(test)
    def run_test(*args: P.args, **more: P.kwargs) -> None:
        run(test(*args, **more), HurryingLoop)

    return run_test


# --- what the client sees -------------------------------------------------------------------------


class Watcher:
    """An HTTP client that tells which answers came."""

    def __init__(self) -> None:
        self._trace = aiohttp.TraceConfig()
        self._trace.on_request_end.append(self._answered)
        self._changed = asyncio.Event()
        self.statuses: Counter[int] = Counter()

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(trace_configs=[self._trace])

    async def saw(self, status: int) -> None:
        while not self.statuses[status]:
            self._changed.clear()
            await self._changed.wait()

    async def _answered(
        self, _client: object, _context: object, params: aiohttp.TraceRequestEndParams
    ) -> None:
        self.statuses[params.response.status] += 1
        self._changed.set()


# --- the proxies ----------------------------------------------------------------------------------


@frozen
class Served:
    """One request, as nginx logged it."""

    connection: int
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
        return [Served(int(number), int(status), method) for number, status, method in lines]


def spare_port() -> int:
    """Return a port that nobody listens on, and that the system gives to no client."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # `random` is seeded alike in all processes
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def _running(
    root: Path, port: int, *command: str, listener: socket.socket | None = None, **env: str
) -> Iterator[Proxy]:
    program = shutil.which(command[0], path=_PATH)
    assert program is not None
    with (root / "output").open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[] if listener is None else [listener.fileno()],
            env={"PATH": _PATH, **env},
        )
    try:
        yield Proxy(root, port, process)
    finally:
        process.terminate()
        code = process.wait(10)
    assert code in (0, 143, -signal.SIGTERM), (root / "output").read_text()


@contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener


_NGINX = """
daemon off;
{user}
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    log_format terse '$connection $status $request_method';
    access_log {root}/access.log terse;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
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
    """Run an nginx.

    Args:
        root: A directory of its own, made if it is not there.
        upstream: The port that it passes requests on to.
        location: Directives for all paths.
        http: Directives for all servers.
    """
    root.mkdir(exist_ok=True)
    with _listener() as listener:
        port = listener.getsockname()[1]
        config = root / "nginx.conf"
        config.write_text(
            _NGINX.format(
                # Its workers would be another user's else, who may not write here.
                user="user root;" if os.geteuid() == 0 else "",
                root=root,
                port=port,
                upstream=upstream,
                location=location,
                http=http,
            )
        )
        arguments = ("-e", f"{root}/error.log", "-p", str(root), "-c", str(config))
        with _running(
            root, port, "nginx", *arguments, listener=listener, NGINX=f"{listener.fileno()};"
        ) as proxy:
            yield proxy


_HAPROXY = """
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
    bind fd@{listener}
    default_backend servers
backend servers
    {backend}
    server one 127.0.0.1:{upstream}
"""


@contextmanager
def haproxy(root: Path, upstream: int, defaults: str = "", *, backend: str = "") -> Iterator[Proxy]:
    """Run an HAProxy; arguments as for `nginx`, with lines for its sections."""
    with _listener() as listener:
        config = root / "haproxy.cfg"
        config.write_text(
            _HAPROXY.format(
                defaults=defaults, listener=listener.fileno(), backend=backend, upstream=upstream
            )
        )
        port = listener.getsockname()[1]
        with _running(root, port, "haproxy", "-db", "-f", str(config), listener=listener) as proxy:
            yield proxy


# What differs from test to test comes with the request: to compile a VCL takes a second.
_VCL = """
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
    with _running(
        root,
        port,
        *("varnishd", "-F", "-j", "none", "-n", str(root / "work"), "-f", str(vcl)),
        *("-a", f"127.0.0.1:{port}", "-s", "malloc,8m", "-T", "none"),
        # A server that refused a connection in the test before may be there again.
        *("-p", "backend_remote_error_holddown=0"),
    ) as proxy:
        while True:
            assert proxy.process.poll() is None, (root / "output").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield proxy

"""A real nginx in front of something, from a config made for one test."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# Debian keeps it out of the PATH of ordinary users.
BINARY = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))

_CONFIG = """
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


@frozen
class Served:
    """One request, as nginx logged it."""

    connection: int
    status: int
    method: str


@frozen
class Nginx:
    """An nginx that runs."""

    root: Path
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def served(self) -> list[Served]:
        """The requests it has answered; all of them once it has stopped."""
        lines = (line.split() for line in (self.root / "access.log").read_text().splitlines())
        return [Served(int(number), int(status), method) for number, status, method in lines]


@asynccontextmanager
async def nginx(
    root: Path, upstream: int, location: str = "", *, http: str = ""
) -> AsyncIterator[Nginx]:
    """Run an nginx on a free port of the loopback interface.

    Args:
        root: A directory of its own, for everything that it writes.
        upstream: The port that it passes requests on to.
        location: Directives for all paths.
        http: Directives for all servers.
    """
    assert BINARY is not None
    # It inherits a socket that listens already, as in an upgrade of the binary: so the port is
    # surely free, and the first connection needs not wait until nginx is up.
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port = listener.getsockname()[1]
        config = root / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                # Its workers would be another user's else, who may not write here.
                user="user root;" if os.geteuid() == 0 else "",
                root=root,
                port=port,
                upstream=upstream,
                location=location,
                http=http,
            )
        )
        process = await asyncio.create_subprocess_exec(
            BINARY,
            "-e",
            str(root / "error.log"),
            "-p",
            str(root),
            "-c",
            str(config),
            pass_fds=[listener.fileno()],
            env={"NGINX": f"{listener.fileno()};"},
            stderr=asyncio.subprocess.PIPE,
        )
    try:
        yield Nginx(root, port)
    finally:
        if process.returncode is None:
            process.terminate()
        _, words = await process.communicate()
    assert process.returncode == 0, words.decode() + (root / "error.log").read_text()

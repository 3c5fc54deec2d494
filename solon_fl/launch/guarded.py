"""A ``flower-superlink`` that only its own user can operate: ``python -m solon_fl.launch.guarded``.

Flower serves nodes and operators at the same port. Nodes authenticate with their keys. Anybody else who reaches the
port, such as every user of a cluster, could register keys and start runs, which execute code on all nodes. Here, only
this user's processes on this machine are served, except for requests of nodes. The kernel reports a connection's user.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import distribution
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["GUARDED", "Guard", "is_own_connection", "main"]

GUARDED = (sys.executable, "-P", "-m", "solon_fl.launch.guarded")
SUPERLINK = "flower-superlink"
FOR_NODES = "/v1/fleet/"
ESTABLISHED = "01"


class Guard:
    """ASGI middleware that refuses requests, except those of nodes and of this user's processes on this machine.

    Parameters
    ----------
    app : callable
        The ASGI app that it protects.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 403."""
        if (
            scope["type"] == "lifespan"
            or scope.get("path", "").startswith(FOR_NODES)
            or (scope["type"] == "http" and _is_direct(scope) and is_own_connection(scope["client"], scope["server"]))
        ):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only for the user who started this SuperLink"})


def is_own_connection(client: tuple[str, int] | None, server: tuple[str, int] | None) -> bool:
    """Return whether the other end of a connection is a socket that this user holds open on this machine.

    Parameters
    ----------
    client, server : (str, int) or None
        Address and port of the other end, and of this one.
    """
    if client is None or server is None:
        return False
    ends = _as_the_kernel_writes(*client), _as_the_kernel_writes(*server)
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        if any(_is_of_user(line, *ends, os.geteuid()) for line in lines):
            return True
    return False


def _is_of_user(line: str, local: str, remote: str, user: int) -> bool:
    """Return whether a line of the kernel's table is a socket with these ends that a process of the user holds open.

    A closed socket belongs to no process. Its line has root as the user and inode 0, whoever owned it before.
    """
    _, line_local, line_remote, state, _, _, _, line_user, _, inode, *_ = line.split()
    return (
        (line_local, line_remote) == (local, remote)
        and state == ESTABLISHED
        and inode != "0"
        and int(line_user) == user
    )


def _is_direct(scope: Any) -> bool:
    """Return whether a request has no proxy's headers about its origin, which the server would trust."""
    return not any(name.lower().startswith(b"x-forwarded") for name, _ in scope["headers"])


def _as_the_kernel_writes(host: str, port: int) -> str:
    address = ip_address(host.partition("%")[0])
    words = [address.packed[start : start + 4] for start in range(0, len(address.packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{port:04X}"


def main() -> NoReturn:
    """Run flower-superlink with the same options."""
    from starlette.middleware import Middleware

    module, name = import_module("flwr.superlink.main"), "_get_middleware"
    if not hasattr(module, name):
        raise AttributeError(f"this version of Flower has no {module.__name__}.{name}; its SuperLink can't be guarded.")
    others = getattr(module, name)
    setattr(module, name, lambda: [Middleware(Guard), *others()])
    sys.argv[0] = SUPERLINK
    (entry,) = distribution("flwr").entry_points.select(group="console_scripts", name=SUPERLINK)
    sys.exit(entry.load()())


if __name__ == "__main__":
    main()

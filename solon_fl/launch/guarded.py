"""`flower-superlink`, whose runs and registrations are for its own user alone: ``python -m solon_fl.launch.guarded``.

Flower serves nodes and operators at the same port. Nodes prove who they are by their keys. Whoever else reaches the
port may register further keys and start runs, which execute code on all nodes: on a cluster, every other user. Here,
what is not for nodes is served only to this user's processes on this machine. The kernel says whose a connection is.
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
    """ASGI middleware that refuses what is not for nodes, unless this user asks on this machine.

    Parameters
    ----------
    app : callable
        The ASGI app behind it.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer with 403."""
        if (
            scope["type"] == "lifespan"
            or scope.get("path", "").startswith(FOR_NODES)
            or (scope["type"] == "http" and _is_direct(scope) and is_own_connection(scope["client"], scope["server"]))
        ):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only for the user who has started this SuperLink"})


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

    A closed socket belongs to no process: the line then gives root as its user, and 0 as its inode, whosever it was.
    """
    _, line_local, line_remote, state, _, _, _, line_user, _, inode, *_ = line.split()
    return (
        (line_local, line_remote) == (local, remote)
        and state == ESTABLISHED
        and inode != "0"
        and int(line_user) == user
    )


def _is_direct(scope: Any) -> bool:
    """Return whether no proxy, or who poses as one, says where a request comes from: the server would believe it."""
    return not any(name.lower().startswith(b"x-forwarded") for name, _ in scope["headers"])


def _as_the_kernel_writes(host: str, port: int) -> str:
    address = ip_address(host.partition("%")[0])
    words = [address.packed[start : start + 4] for start in range(0, len(address.packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{port:04X}"


def main() -> NoReturn:
    """Be flower-superlink, with the same options."""
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

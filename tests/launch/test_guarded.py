"""A SuperLink that only its own user can operate."""

import asyncio
import os
import shutil
import socket
import subprocess
from typing import Any

import pytest

from solon_fl.launch.guarded import Guard, _is_of_user, is_own_connection

NOBODY = 65534


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_of_this_user_is_told_from_others(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen()
        server = listener.getsockname()[:2]
        with socket.create_connection(server) as own:
            port = own.getsockname()[1]
            assert is_own_connection((host, port), server)
            assert not is_own_connection((host, port), (host, port))
        assert not is_own_connection(("10.1.2.3", port), server)  # from another machine
        assert not is_own_connection(None, server)
        listener.accept()[0].close()
        if os.geteuid() == 0 and shutil.which("bash") is not None:
            line = f"exec 3<>/dev/tcp/{host}/{server[1]}; read"
            with subprocess.Popen(["bash", "-c", line], user=NOBODY, stdin=subprocess.PIPE, cwd="/") as other:
                connection, theirs = listener.accept()
                with connection:
                    assert not is_own_connection((host, theirs[1]), server)
                    other.communicate(b"\n")
                    assert not is_own_connection((host, theirs[1]), server)  # the line of a closed socket names root


def test_a_closed_socket_is_nobodys_though_the_kernel_says_it_is_roots() -> None:
    client, server = "0100007F:C350", "0100007F:2384"
    line = f"   7: {client} {server} %s 00000000:00000000 00:00000000 00000000 %5d        0 %s 2 0000000000000000 20"
    assert _is_of_user(line % ("01", 0, "49152"), client, server, 0)
    assert not _is_of_user(line % ("01", 65534, "49152"), client, server, 0)
    assert not _is_of_user(line % ("01", 0, "49152"), server, client, 0)
    for state, inode in (("05", "0"), ("04", "49152"), ("01", "0")):
        assert not _is_of_user(line % (state, 0, inode), client, server, 0)


def answer(path: str, client: tuple[str, int], server: tuple[str, int], *headers: tuple[bytes, bytes]) -> int:
    """Return the status of the answer to a request."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "path": path, "client": client, "server": server, "headers": headers}
    asyncio.run(Guard(app)(scope, None, send))
    return int(sent[0]["status"])


def test_nodes_are_served_and_of_operators_only_this_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = listener.getsockname()
        with socket.create_connection(server) as own:
            here, elsewhere = own.getsockname(), ("10.1.2.3", 5)
            for path in ("/v1/control/start-run", "/v1/runtime/x", "/v1/fleetwood", "/docs"):
                assert answer(path, here, server) == 200
                assert answer(path, elsewhere, server) == 403
                # With a proxy's header, real or forged, the server would take the client's address from the header.
                assert answer(path, here, server, (b"X-Forwarded-For", b"127.0.0.1")) == 403
            assert answer("/v1/fleet/pull", elsewhere, server) == 200

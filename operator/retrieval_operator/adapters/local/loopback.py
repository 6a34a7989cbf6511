"""Loopback ports: finding a free one, and saying who has one that is not."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Collection
from contextlib import closing

from retrieval_operator.ports import Rejected

HOST = "127.0.0.1"
# Below the ranges that systems take source ports from (Linux: 32768-60999, RFC 6335: 49152-65535): a port there could
# be gone to any outgoing connection while its server restarts. Also below Kubernetes' node ports (30000-32767).
_FIRST, _LAST = 21_000, 29_999


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now. Ports of connections that just ended count as free."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def choose(purpose: str, taken: Collection[int]) -> int:
    """A free port that is not in `taken`; the same purpose tends to get the same one. Raises Rejected."""
    size = _LAST - _FIRST + 1
    start = int(hashlib.sha256(purpose.encode()).hexdigest(), 16) % size
    for offset in range(size):
        port = _FIRST + (start + offset) % size
        if port not in taken and is_free(port):
            return port
    raise Rejected(f"found no free port between {_FIRST} and {_LAST} on {HOST}; end what listens there")


def owner(port: int) -> str:
    """Who listens on the port, as words for a message."""
    import psutil  # noqa: PLC0415 (2 MB that only this message needs)

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return "another process"

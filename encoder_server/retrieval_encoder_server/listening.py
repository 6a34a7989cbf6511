"""The listening socket: claimed early, opened when ready, closed without resetting anybody."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterator

from retrieval_core.errors import BadArguments, TemporarilyUnavailable

# Connections that wait to be accepted; the kernel caps it at net.core.somaxconn (4096 by default).
BACKLOG = 2048
# Linux, asm-generic/socket.h; Python has no name for it.
SO_ATTACH_FILTER = 26
# A classic BPF program (code, jump if true, jump if false, constant) that sees a packet from its TCP header on:
# load the flags, keep SYN and ACK, drop the packet if that leaves SYN alone, else keep all of it.
DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def bind(host: str, port: int, setting: str = "PORT") -> socket.socket:
    """A bound socket that does not listen yet: the port is claimed before a model is loaded, and refuses until ready.

    `setting`: the name under which a person chose the port.
    Raises BadArguments on an address this machine does not have, TemporarilyUnavailable when the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise BadArguments(f"HOST {host!r} is not an address: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(error, host, port, setting) from None
    return listener


def listen(listener: socket.socket) -> None:
    """Start to accept. Two sockets can be bound to one port while neither listens, so this may find it in use, too."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(error, host, port) from None


def _cannot_listen(error: OSError, host: str, port: int, setting: str = "PORT") -> Exception:
    if error.errno == errno.EADDRINUSE:
        return TemporarilyUnavailable(
            f"port {port} of {host} is in use by another process; stop that process, or choose another {setting}"
        )
    return BadArguments(f"cannot listen on {host} port {port}: {error.strerror}")


def stop_handshakes(listener: socket.socket) -> None:
    """Let the kernel ignore new connection attempts, on Linux; those that have begun are completed.

    Between the last `accept` and `close` the kernel would otherwise still complete handshakes, and then reset them:
    measured at one lost request in 40 stops under 1000 new connections per second. An ignored client asks again after
    a second and is refused, before it has sent a request.
    """
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in DROP_SYN)
    buffer = ctypes.create_string_buffer(program, len(program))
    with contextlib.suppress(OSError):  # not Linux, or a sandbox without filters: the window stays, a few microseconds
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(DROP_SYN), ctypes.addressof(buffer))
        )


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Every connection that is complete and not accepted yet."""
    while True:
        try:
            yield listener.accept()[0]
        except OSError:  # BlockingIOError: nobody waits. Anything else: nobody can be accepted any more.
            return

"""The stable address: a TCP proxy that sends each new connection to the live stack. Standard library only.

Run as `python -I -S proxy.py TRAFFIC_FILE HOST PORT`. For each new connection it looks at the traffic file (and the
stack file it names, which lists the replicas' ports); both change by rename, so an unchanged inode and time of change
mean an unchanged file. A connection accepted after a switch was written can therefore only reach the new stack.
A connection stays where it began; the servers close theirs after the connection age, so clients follow.

It knows nothing of HTTP: bytes are passed on in both directions, a half-closed side is passed on as half-closed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import socket
import struct
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

_CHUNK_BYTES = 65_536
_BACKLOG = 1024
_CONNECT_TIMEOUT_S = 1.0
# How long a new connection waits for a replica that accepts: a restart of a server's process takes longer, but its
# listening socket of a moment ago may be replaced within this. A gut feeling.
_PATIENCE_S = 3.0
_RETRY_S = 0.05


class JsonFile:
    """A file that others replace by rename; read again only when it was replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._document: dict[str, Any] | None = None

    def read(self) -> dict[str, Any] | None:
        """The document, None while there is none."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 (pathlib is not imported here)
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version != self._seen:
                with open(self._path, "rb") as stream:  # noqa: PTH123
                    self._document = json.load(stream)
                self._seen = version
        except (OSError, ValueError):
            self._seen = self._document = None
        return self._document


class Proxy:
    def __init__(self, traffic_file: str) -> None:
        self._traffic = JsonFile(traffic_file)
        self._stack: JsonFile | None = None
        self._stack_path = ""
        self._turn = itertools.count()

    async def serve(self, host: str, port: int) -> None:
        server = await asyncio.start_server(self._handle, host, port, backlog=_BACKLOG, limit=_CHUNK_BYTES)
        async with server:
            await server.serve_forever()

    def live_ports(self) -> list[int]:
        """The ports of the live stack's replicas, starting with the one whose turn it is. Empty: nothing is live."""
        traffic = self._traffic.read()
        path = (traffic or {}).get("stack_file", "")
        if path != self._stack_path:
            self._stack, self._stack_path = JsonFile(path), path
        ports = ((self._stack.read() if self._stack else None) or {}).get("ports", [])
        first = next(self._turn) % len(ports) if ports else 0
        return [*ports[first:], *ports[:first]]

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await self._connect()
        if server is None:
            _reset(writer)
            return
        server_reader, server_writer = server
        await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))
        for side in (writer, server_writer):
            side.close()
            with suppress(OSError):
                await side.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to a live replica; the file is looked at before each try. None after _PATIENCE_S."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        while True:
            for port in self.live_ports():
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                        return await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK_BYTES)
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(_RETRY_S)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the reader's end, then half-close the writer. A broken side breaks the other one too."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset (TCP RST). An orderly end would look like the end of an answer to some clients."""
    with suppress(OSError):  # it is gone already
        # Linger for 0 s: close(2) then resets (socket(7)).
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def raise_open_files_limit() -> None:
    """Two descriptors per connection: the usual soft limit of 1024 would end at some 500 clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports no hard limit, yet refuses more than OPEN_MAX
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536) if hard > 0 else soft), hard))


def main() -> None:
    traffic_file, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    raise_open_files_limit()
    try:
        asyncio.run(Proxy(traffic_file).serve(host, port))
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error}")


if __name__ == "__main__":
    main()

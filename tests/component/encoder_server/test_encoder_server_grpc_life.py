"""How calls over gRPC fare while one server process hands over to another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

pytestmark = [pytest.mark.component, pytest.mark.asyncio]


class Switch:
    """One address; each new connection goes to the current target, and stays there, as with a Kubernetes Service."""

    def __init__(self, target: str) -> None:
        self.target = target

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        beyond_reader, beyond_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(self._pump(reader, beyond_writer), self._pump(beyond_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()


class Caller:
    """Calls without a pause, and for something cheap, so that calls are always on the wire.

    `generations` are the ids in its answers.
    """

    def __init__(self, address: str) -> None:
        # Not one connection for all callers of this process, as gRPC would otherwise share it.
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.generations: list[str] = []

    async def run(self, until: Callable[[], bool]) -> None:
        stub = GRPCInferenceServiceStub(self._channel)
        async with self._channel:
            while not until():
                call = stub.ModelMetadata(pb.ModelMetadataRequest(name="model"))
                await call
                self.generations.append(dict(await call.trailing_metadata())["x-generation-id"])


async def test_no_call_fails_while_connections_move_from_a_draining_server_to_another(spawn, served_process, stack):
    old = spawn(grpc_port=0, drain_seconds=4, generation_uri=None)
    switch = Switch(await asyncio.to_thread(lambda: old.grpc_address))
    async with await asyncio.start_server(switch, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        callers = [Caller(address) for _ in range(16)]
        is_over = False
        running = [asyncio.create_task(caller.run(lambda: is_over)) for caller in callers]
        while not all(len(caller.generations) >= 5 for caller in callers):
            await asyncio.sleep(0.01)
        switch.target = served_process.grpc_address
        old.term()
        assert await asyncio.to_thread(old.exit_code) == 0
        is_over = True
        await asyncio.gather(*running)
    for caller in callers:
        assert caller.generations[0] == "", "the draining server has no generation"
        assert caller.generations[-1] == stack.generation.id, (
            "its connection was ended, and the next one led to the other server"
        )


async def test_a_grpc_port_in_use_is_said_before_anything_is_loaded(spawn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = spawn(grpc_port=taken.getsockname()[1])
        assert process.exit_code() == 75
    assert "choose another GRPC_PORT" in process.text
    assert not [line for line in process.log if line["event"] == "bundle verified"]

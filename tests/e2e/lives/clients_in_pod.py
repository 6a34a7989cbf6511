"""The demo's clients, and some that ask by KServe's V2 over gRPC beside them. Runs in a pod, with the server's image.

Arguments: the address that follows the champion, the object's name, and members' ids, separated by commas.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from clients import CLIENTS_OF_EACH_KIND, TIMEOUT_S, Ask, Failed, Pair, http_clients, run
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

GRPC_PORT = 8081
CHANNEL = [
    # Not one connection for all clients of this process, as gRPC would otherwise share it.
    ("grpc.use_local_subchannel_pool", 1),
    # An outage is to be seen as long as it is: by default gRPC tries to connect more and more rarely, up to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
ANSWERED = Path("/tmp/answered")  # made when each client was answered once


def over_grpc(channel: grpc.aio.Channel, model: str) -> Ask:
    """Asks for the embedding of a prompt, which is the member's id: what is served over gRPC are vectors."""
    stub = GRPCInferenceServiceStub(channel)

    async def ask(member: str) -> tuple[Pair, Pair]:
        call = stub.ModelInfer(_request(model, member), timeout=TIMEOUT_S)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise Failed(f"{error.code().name}: {error.details()}") from error
        beside = dict(await call.trailing_metadata())
        inside = (answer.parameters["bundle_id"].string_param, answer.parameters["generation_id"].string_param)
        return inside, (beside["x-bundle-id"], beside["x-generation-id"])

    return ask


def _request(model: str, prompt: str) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="prompts", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt.encode())
    return pb.ModelInferRequest(model_name=model, inputs=[tensor])


async def main(address: str, model: str, members: list[str]) -> None:
    async with AsyncExitStack() as stack:
        clients = await http_clients(address, stack)
        for _ in range(CLIENTS_OF_EACH_KIND):
            target = f"{urlsplit(address).hostname}:{GRPC_PORT}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL))
            clients.setdefault("grpc", []).append(over_grpc(channel, model))
        for ask in chain.from_iterable(clients.values()):
            await ask(members[0])
        ANSWERED.touch()
        await run(clients, members)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3].split(",")))

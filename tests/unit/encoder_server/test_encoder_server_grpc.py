"""KServe's V2 over gRPC, through a real channel on loopback."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from retrieval_core.errors import TemporarilyUnavailable
from retrieval_encoder_server import refusals
from retrieval_encoder_server.grpc_server import CODES, GrpcServer, connection_age_s
from retrieval_encoder_server.listening import bind, listen
from retrieval_encoder_server.server import DrainingServer
from retrieval_encoder_server.settings import Settings

pytestmark = pytest.mark.asyncio

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Rpc(GRPCInferenceServiceStub):
    """A client of one server; `server` is the running gRPC server."""

    def __init__(self, channel: grpc.aio.Channel, server: GrpcServer) -> None:
        super().__init__(channel)
        self.server = server

    async def infer(self, *elements: str | bytes, name: str = "prompts", raw: bool = False, **call) -> InferResponse:
        return InferResponse.from_grpc(await self.ModelInfer(infer_request(*elements, name=name, raw=raw), **call))


def infer_request(
    *elements: str | bytes, name: str = "prompts", datatype: str = "BYTES", model: str = "model", raw: bool = False
) -> pb.ModelInferRequest:
    encoded = [element.encode() if isinstance(element, str) else element for element in elements]
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=[len(encoded)])
    request = pb.ModelInferRequest(model_name=model, id="7", inputs=[tensor])
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(value)) + value for value in encoded))
    else:
        request.inputs[0].contents.bytes_contents.extend(encoded)
    return request


def cut_short(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return request


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Rpc]]]:
    """`await connect(server)` starts gRPC beside a server, and gives a client of it."""
    opened = []

    async def connect(server) -> Rpc:
        claimed = bind("127.0.0.1", 0)
        beside = GrpcServer(server.data_plane, server.service, server.settings, server.metrics, claimed)
        await beside.start()
        channel = grpc.aio.insecure_channel(beside.address)
        opened.append((claimed, beside, channel))
        return Rpc(channel, beside)

    yield connect
    for claimed, beside, channel in opened:
        await channel.close()
        await beside.stop(immediately=True)
        claimed.close()


@pytest.fixture
async def rpc(connect, server) -> Rpc:
    return await connect(server)


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("name", "elements", "prompts"),
    [("prompts", ["a", "b"], ["a", "b"]), ("members", ['{"activity": 1}'], ["mactivity=1"]), ("items", ["{}"], ["i"])],
)
async def test_infer_takes_what_v2_over_rest_takes(rpc, world, name, elements, prompts, raw):
    response = await rpc.infer(*elements, name=name, raw=raw)
    assert (response.id, response.model_name) == ("7", "model")
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("embeddings", "FP32", [len(prompts), world.served])
    np.testing.assert_allclose(output.as_numpy(), [world.vector(prompt) for prompt in prompts], atol=1e-6)


@pytest.mark.parametrize("raw", [False, True])
async def test_vectors_come_in_the_form_in_which_the_inputs_came(rpc, raw):
    """KServe's convention: a client that cannot read raw contents does not send them."""
    response = await rpc.ModelInfer(infer_request("a", raw=raw))
    assert bool(response.raw_output_contents) is raw
    assert bool(response.outputs[0].contents.fp32_contents) is not raw


async def test_ids_are_in_the_response_and_in_the_trailing_metadata(rpc, world):
    call = rpc.ModelInfer(infer_request("a"))
    parameters = (await call).parameters
    assert parameters["bundle_id"].string_param == world.bundle_id
    assert parameters["generation_id"].string_param == world.generation_id
    assert dict(await call.trailing_metadata()) == {
        "x-bundle-id": world.bundle_id,
        "x-generation-id": world.generation_id,
    }


async def test_without_a_generation_its_id_is_empty(connect, start_server):
    call = (await connect(start_server(index=None))).ModelInfer(infer_request("a"))
    assert (await call).parameters["generation_id"].string_param == ""
    assert dict(await call.trailing_metadata())["x-generation-id"] == ""


async def test_metadata_describes_server_and_model(rpc, world):
    server = await rpc.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, list(server.extensions)) == ("kserve", ["binary_tensor_data"])
    model = await rpc.ModelMetadata(pb.ModelMetadataRequest(name="model"))
    assert [tensor.name for tensor in model.inputs] == ["prompts", "members", "items"]
    (output,) = model.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("embeddings", "FP32", [-1, world.served])


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (infer_request("a", name="input"), "INVALID_ARGUMENT", "inputs.input: unknown tensor, expected prompts"),
        (infer_request("{", name="members"), "INVALID_ARGUMENT", "inputs.members[0]: not JSON"),
        (infer_request('{"jobs": 1}', name="members"), "INVALID_ARGUMENT", "inputs.members[0].member.jobs: unknown"),
        (infer_request(b"\xff"), "INVALID_ARGUMENT", "inputs.prompts: an element is not UTF-8"),
        (
            cut_short(infer_request("ab", raw=True)),
            "INVALID_ARGUMENT",
            "inputs.prompts: its binary data ends before its",
        ),
        (infer_request("a", datatype="WORDS"), "INVALID_ARGUMENT", "invalid content type"),
        (infer_request("x" * 65), "INVALID_ARGUMENT", "inputs.prompts[0]: the prompt has 65 tokens, this bundle takes"),
        (infer_request(*"a" * 257), "INVALID_ARGUMENT", "found 257 inputs, this server takes at most 256 at once"),
        (infer_request("a", model="other"), "NOT_FOUND", "Model with name other does not exist."),
        (infer_request("a", model="ö" * 10_000), "NOT_FOUND", "Model with name öö"),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_a_code_and_the_ids(rpc, world, request_, code, message):
    error = await failure(rpc.ModelInfer(request_))
    assert error.code().name == code
    assert error.details().startswith(message)
    assert dict(error.trailing_metadata())["x-bundle-id"] == world.bundle_id


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
async def test_another_model_is_not_found(rpc, method):
    request = getattr(pb, f"{method}Request")(name="other")
    assert (await failure(getattr(rpc, method)(request))).code() is grpc.StatusCode.NOT_FOUND


async def test_every_refusal_has_a_code():
    """But TooSlow: how fast a message arrives is gRPC's own affair."""
    pending, kinds = [refusals.Refused], set()
    while pending:
        pending += (subclasses := pending.pop().__subclasses__())
        kinds.update(subclasses)
    assert set(CODES) == kinds - {refusals.TooSlow}


@pytest.mark.parametrize(
    ("method", "request_"),
    [("ModelInfer", infer_request("a")), ("ServerReady", pb.ServerReadyRequest())],
)
async def test_another_expected_bundle_is_a_failed_precondition(rpc, world, method, request_):
    call = getattr(rpc, method)
    error = await failure(call(request_, metadata=[("x-expected-bundle-id", "b-ffffffffffffffff")]))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == f"x-expected-bundle-id is b-ffffffffffffffff, this server has bundle {world.bundle_id}"
    await call(request_, metadata=[("x-expected-bundle-id", world.bundle_id)])


async def test_a_message_beyond_the_bound_on_bodies_is_refused(connect, start_server):
    rpc = await connect(start_server(max_body_bytes=1024))
    error = await failure(rpc.infer("x" * 1024))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_nobody_can_unload_the_model(rpc, method):
    request = getattr(pb, f"{method}Request")(model_name="model")
    assert (await failure(getattr(rpc, method)(request))).code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await rpc.ModelReady(pb.ModelReadyRequest(name="model"))).ready


async def test_a_full_queue_says_when_to_come_again(connect, start_server, world, hanging):
    server = start_server(encode=hanging(world.encode), max_queue_tokens=5)
    rpc = await connect(server)
    running = asyncio.ensure_future(rpc.infer("first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    waiting = asyncio.ensure_future(rpc.infer("abcd"))
    while server.sample("retrieval_encoder_queued_tokens") != 4:
        await asyncio.sleep(0)
    error = await failure(rpc.infer("xy"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "4 of at most 5 tokens wait already, the request has 2; try again later"
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1000
    hanging.release.set()
    await asyncio.gather(running, waiting)
    assert server.sample("retrieval_encoder_refused_total", reason="overloaded") == 1


async def test_calls_that_together_would_take_too_much_are_refused_until_others_are_answered(
    connect, start_server, world, hanging
):
    server = start_server(encode=hanging(world.encode), max_body_bytes=1024, max_bodies_bytes=2047)
    rpc = await connect(server)
    running = asyncio.create_task(rpc.infer("first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    refused = await failure(rpc.infer("second"))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    hanging.release.set()
    await running
    assert (await rpc.infer("third")).outputs


async def test_the_servers_deadline_is_a_deadline_exceeded(connect, start_server, world, hanging):
    rpc = await connect(start_server(encode=hanging(world.encode), request_timeout_seconds=0.05))
    error = await failure(rpc.infer("a"))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "not answered within 0.05 s; the server is overloaded"


async def test_a_caller_whose_own_deadline_passes_leaves_the_queue(connect, start_server, world, hanging):
    server = start_server(encode=hanging(world.encode))
    rpc = await connect(server)
    running = asyncio.ensure_future(rpc.infer("first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    assert (await failure(rpc.infer("abcd", timeout=0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while not server.sample("retrieval_encoder_requests_total", endpoint=INFER, code="CANCELLED"):
        await asyncio.sleep(0.001)
    hanging.release.set()
    await running
    assert hanging.calls == 1, "what nobody waits for is not computed"


async def test_a_defect_is_internal_without_its_story(connect, start_server):
    def defect(prompts):
        raise ZeroDivisionError("secret detail")

    error = await failure((await connect(start_server(encode=defect))).infer("a"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error; the server's log says more"


TENSORS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["prompts", "members", "items", ""]),
    datatype=st.sampled_from(["BYTES", "FP32", "FP16", "BOOL", "X"]),
    shape=st.lists(st.sampled_from([-(2**63), -1, 0, 1, 2, 2**63 - 1]), max_size=3),
    contents=st.none()
    | st.builds(pb.InferTensorContents, bytes_contents=st.lists(st.sampled_from([b"a", b"{}", b"\xff"]), max_size=3)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    request_=st.builds(
        pb.ModelInferRequest,
        model_name=st.just("model"),
        inputs=st.lists(TENSORS, max_size=2),
        raw_input_contents=st.lists(st.binary(max_size=8), max_size=2),
        outputs=st.lists(
            st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=st.text(max_size=3)), max_size=1
        ),
        parameters=st.just({}) | st.just({"binary_data_output": pb.InferParameter(bool_param=True)}),
    )
)
async def test_no_message_is_an_internal_error(rpc, request_):
    try:
        await rpc.ModelInfer(request_)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error


# --- life ---------------------------------------------------------------------------------------------------------


async def test_a_draining_server_is_live_and_answers_but_is_not_ready(server, rpc):
    ready = lambda: rpc.ServerReady(pb.ServerReadyRequest())  # noqa: E731
    model_ready = lambda: rpc.ModelReady(pb.ModelReadyRequest(name="model"))  # noqa: E731
    assert (await ready()).ready
    assert (await model_ready()).ready
    server.lifecycle.begin_drain()
    assert not (await ready()).ready
    assert not (await model_ready()).ready
    assert (await rpc.ServerLive(pb.ServerLiveRequest())).live
    assert (await rpc.infer("a")).outputs


async def test_a_dead_worker_shows_in_liveness(server, rpc):
    server.service._encode.stop()
    assert not (await rpc.ServerLive(pb.ServerLiveRequest())).live


async def test_stopping_lets_calls_in_flight_finish_and_takes_no_new_ones(connect, start_server, world, hanging):
    rpc = await connect(start_server(encode=hanging(world.encode)))
    running = asyncio.ensure_future(rpc.infer("first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    stopping = asyncio.ensure_future(rpc.server.stop())
    assert (await failure(rpc.infer("late"))).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert not stopping.done()
    hanging.release.set()
    np.testing.assert_allclose((await running).outputs[0].as_numpy(), [world.vector("first")], atol=1e-6)
    await stopping


async def test_a_forced_exit_waits_for_nobody(connect, start_server, world, hanging):
    server = start_server(encode=hanging(world.encode))
    rpc = await connect(server)
    running = asyncio.ensure_future(rpc.infer("first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    http = DrainingServer(None, server.settings, server.lifecycle, beside=rpc.server)
    http.force_exit = True
    await http._shutdown_grpc()
    assert (await failure(running)).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_a_port_that_another_began_to_listen_on_is_named(server):
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        late = GrpcServer(server.data_plane, server.service, server.settings, server.metrics, second)
        with pytest.raises(TemporarilyUnavailable, match=r"in use by another process; .* another GRPC_PORT"):
            await late.start()


@pytest.mark.parametrize(
    ("age", "drain", "expected"),
    [
        (60, 15, 12),
        (5, 15, 5),
        pytest.param(60, 0, 60, id="without a drain there is nothing to fit into"),
        pytest.param(60, 1, 60, id="nor with one so short"),
    ],
)
async def test_connections_end_by_age_within_the_drain(age, drain, expected):
    chosen = connection_age_s(Settings(bundle_uri="unused", connection_age_seconds=age, drain_seconds=drain))
    assert chosen == pytest.approx(expected)


async def test_calls_are_counted_by_method_and_code(server, rpc):
    await rpc.infer("a")
    await failure(rpc.infer(""))
    count = lambda code: server.sample("retrieval_encoder_requests_total", endpoint=INFER, code=code)  # noqa: E731
    assert (count("OK"), count("INVALID_ARGUMENT")) == (1, 1)
    assert server.sample("retrieval_encoder_refused_total", reason="malformed") == 1

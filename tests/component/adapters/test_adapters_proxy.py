"""The stable address under traffic: nobody notices a switch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections import Counter
from pathlib import Path

import httpx
import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.local.processes import Restarts
from retrieval_operator.adapters.local.programs import Program
from retrieval_operator.adapters.local.proxy import Proxy
from retrieval_operator.adapters.local.stacks import LocalStacks
from retrieval_operator.api.objects import parse_manifest
from retrieval_operator.api.status import StackRecord
from retrieval_operator.ports import Rejected

pytestmark = pytest.mark.component

SERVER = Path(__file__).parents[2] / "contract" / "ports" / "programs" / "server.py"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading certificates would take most of the time
NOW = 1_700_000_000
MODEL = parse_manifest(
    {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed", "uid": "uid-1"},
        "spec": {
            "storage": {"uri": "/storage"},
            "data": {"uri": "/data", "revision": "1"},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
        },
    },
    "test",
)


def record(stack, bundle_uri="/bundle"):
    return StackRecord(
        stack=stack,
        bundle_id=f"b-{stack}",
        bundle_uri=bundle_uri,
        generation_id=f"g-{stack}",
        generation_uri="/generation",
        generation_key="key",
        serving_hash="hash",
        revision="revision",
    )


def machine_at(path, **options):
    programs = {"retrieval-encoder-server": Program(target=(str(SERVER),))}
    return LocalMachine(LocalHome(path / "home"), **{"repairs": True, "programs": programs, **options})


@pytest.fixture
async def machine(tmp_path):
    machine = machine_at(tmp_path)
    yield machine
    await machine.stop_everything()


async def eventually(condition):
    async with asyncio.timeout(20):
        while not (value := await condition()):
            await asyncio.sleep(0.01)
    return value


async def ready(machine, *stacks, replicas=1):
    for stack in stacks:
        await machine.stacks.create(MODEL, record(stack), replicas)

    async def all_ready():
        seen = await machine.stacks.observe(MODEL)
        return all(seen[stack].ready_replicas == replicas for stack in stacks)

    await eventually(all_ready)


async def switch(machine, stack):
    version = (await machine.traffic.observe(MODEL)).version
    await machine.traffic.switch(MODEL, record(stack), version, NOW)
    return (await machine.traffic.observe(MODEL)).address


def client(address):
    return httpx.AsyncClient(base_url=address, trust_env=False, timeout=10, verify=NO_TLS)


async def who(address, path="/v1/ids"):
    """The bundle that a new connection reaches."""
    async with client(address) as once:
        return (await once.get(path)).json()["bundle_id"]


async def test_twenty_switches_under_load_fail_no_request_and_are_seen_by_every_new_connection(machine):
    await ready(machine, "s1", "s2", replicas=2)
    address = await switch(machine, "s1")
    stop = asyncio.Event()
    answers: Counter[str] = Counter()

    async def keep_alive():
        async with client(address) as kept:
            seen = set()
            while not stop.is_set():
                response = await kept.get("/v1/ids")
                assert response.status_code == 200
                seen.add(response.json()["bundle_id"])
                answers["kept"] += 1
            return len(seen)

    async def new_connections():
        while not stop.is_set():
            answers[await who(address)] += 1

    async def new_slow_connections():
        while not stop.is_set():
            await who(address, "/v1/slow")
            answers["slow"] += 1

    async with asyncio.TaskGroup() as group:
        kept = [group.create_task(keep_alive()) for _ in range(4)]
        for load in (new_connections, new_connections, new_slow_connections, new_slow_connections):
            group.create_task(load())
        for number in range(20):
            stack = "s2" if number % 2 == 0 else "s1"
            await switch(machine, stack)
            for _ in range(3):
                assert await who(address) == f"b-{stack}"
        stop.set()
    assert [task.result() for task in kept] == [1] * 4  # a connection stays with the stack it began with
    assert min(answers[kind] for kind in ("kept", "slow", "b-s1", "b-s2")) > 0


async def test_requests_in_flight_on_a_stack_that_is_deleted_are_answered(machine):
    await ready(machine, "s1", "s2")
    address = await switch(machine, "s1")
    in_flight = [asyncio.create_task(who(address, "/v1/slow")) for _ in range(4)]
    direct = (await machine.stacks.observe(MODEL))["s1"].address

    async def all_in_flight():
        async with client(direct) as once:
            return (await once.get("/v1/ids")).json()["in_flight"] > len(in_flight)

    await eventually(all_in_flight)
    await switch(machine, "s2")
    await machine.stacks.delete(MODEL, "s1")
    assert [await task for task in in_flight] == ["b-s1"] * 4
    assert await who(address) == "b-s2"


async def test_new_connections_take_turns_among_the_replicas_and_skip_dead_ones(machine, tmp_path):
    await ready(machine, "s1", replicas=3)
    address = await switch(machine, "s1")

    async def ports():
        async with client(address) as once:
            return (await once.get("/v1/ids")).json()["port"]

    wanted = json.loads((machine.home.stack("default/feed", "s1") / "stack.json").read_text())["ports"]
    assert Counter([await ports() for _ in range(9)]) == Counter(wanted * 3)
    machine.supervisor.stop(machine.home.stack("default/feed", "s1") / "replica-1")
    assert Counter([await ports() for _ in range(6)]).keys() == {wanted[0], wanted[2]}


async def test_the_proxy_comes_back_on_its_port_when_it_or_its_wrapper_is_killed(machine):
    await ready(machine, "s1")
    address = await switch(machine, "s1")
    directory = machine.home.proxy("default/feed")

    async def answers_again():
        await machine.traffic.observe(MODEL)  # the control plane looks from time to time
        return await who_or_none(machine) == "b-s1"

    def process():
        return json.loads((directory / "process.json").read_text())

    before = process()
    kill(before["child"])
    await eventually(answers_again)
    assert process()["pid"] == before["pid"]  # the wrapper did it alone
    kill(before["pid"])

    async def has_another_wrapper():
        return await answers_again() and process()["pid"] != before["pid"]

    await eventually(has_another_wrapper)
    assert (await machine.traffic.observe(MODEL)).address == address


async def test_servers_are_adopted_by_the_next_control_plane(machine, tmp_path):
    await ready(machine, "s1")
    address = await switch(machine, "s1")
    pids = process_ids(machine, "s1")
    successor = machine_at(tmp_path)
    assert (await successor.stacks.observe(MODEL))["s1"].is_ready
    assert (await successor.traffic.observe(MODEL)).address == address
    await successor.stacks.create(MODEL, record("s1"), 1)
    assert process_ids(successor, "s1") == pids


async def test_servers_whose_wrapper_was_killed_are_started_again_without_a_second_one(machine):
    await ready(machine, "s1")
    (before,) = process_ids(machine, "s1")
    kill(before)

    async def is_back():
        return (await machine.stacks.observe(MODEL))["s1"].is_ready and process_ids(machine, "s1") != [before]

    await eventually(is_back)


async def test_a_look_without_repairs_changes_nothing(machine, tmp_path):
    await ready(machine, "s1")
    await switch(machine, "s1")
    await machine.stop_everything()
    onlooker = machine_at(tmp_path, repairs=False)
    assert not (await onlooker.stacks.observe(MODEL))["s1"].is_ready
    await onlooker.traffic.observe(MODEL)
    assert onlooker.supervisor.observe(onlooker.home.proxy("default/feed")).state == "Exited"
    await machine.stacks.observe(MODEL)
    await ready(machine, "s1")
    await eventually(lambda: who_or_none(machine))


async def test_a_server_that_exits_is_failed_with_its_last_words_and_create_tries_again(machine):
    await machine.stacks.create(MODEL, record("s1", bundle_uri="/broken"), 1)

    async def failure():
        return (await machine.stacks.observe(MODEL))["s1"].failed

    assert "exit code 65" in (said := await eventually(failure))
    assert "this bundle is refused" in said
    await machine.stacks.create(MODEL, record("s1", bundle_uri="/broken"), 1)
    assert "exit code 65" in await eventually(failure)


@pytest.mark.parametrize(("rest_s", "comes_back"), [(0.0, True), (3600.0, False)])
async def test_a_replica_that_gave_up_beside_a_ready_one_is_tried_again_after_a_rest(machine, rest_s, comes_back):
    once = Restarts(limit=0)
    programs = {"retrieval-encoder-server": Program(target=(str(SERVER),))}
    stacks = LocalStacks(
        machine.home, machine.supervisor, repairs=True, programs=programs, restarts=once, rest_s=rest_s
    )
    await stacks.create(MODEL, record("s1"), 2)

    async def ready_replicas():
        return (await stacks.observe(MODEL))["s1"].ready_replicas

    async def both_are_ready():
        return await ready_replicas() == 2

    await eventually(both_are_ready)
    replica = machine.home.stack("default/feed", "s1") / "replica-1"
    before = json.loads((replica / "process.json").read_text())
    kill(before["child"])

    async def has_ended():
        return machine.supervisor.observe(replica).pid != before["pid"] or (replica / "exit.json").exists()

    await eventually(has_ended)
    if comes_back:
        await eventually(both_are_ready)
    else:
        assert [await ready_replicas() for _ in range(3)] == [1, 1, 1]
        assert machine.supervisor.observe(replica).state == "Exited"


async def test_a_server_with_other_ids_than_its_record_is_not_ready(machine):
    await ready(machine, "s1")
    path = machine.home.stack("default/feed", "s1") / "stack.json"
    document = json.loads(path.read_text())
    document["record"]["bundleId"] = "b-another"
    path.write_text(json.dumps(document))
    assert (await machine.stacks.observe(MODEL))["s1"].ready_replicas == 0


async def test_a_preferred_port_is_used_and_one_in_use_is_refused_with_who_has_it(machine, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wishing = machine_at(tmp_path, preferred_ports={"default/feed": port})
        await ready(wishing, "s1")
        with pytest.raises(Rejected, match=rf"port {port} .* is used by process \d+ .*; end that process or choose"):
            await switch(wishing, "s1")
        assert (await wishing.traffic.observe(MODEL)).live is None
    assert await switch(wishing, "s1") == f"http://127.0.0.1:{port}"


async def test_garbage_of_deleted_objects_is_collected_and_the_living_are_left_alone(machine):
    kept = machine.store.apply(MODEL, now=NOW).model
    await machine.stacks.create(kept, record("s1"), 1)
    gone = kept.model_copy(update={"metadata": kept.metadata.model_copy(update={"name": "gone", "uid": "uid-9"})})
    await machine.stacks.create(gone, record("s2"), 1)
    await machine.traffic.switch(gone, record("s2"), (await machine.traffic.observe(gone)).version, NOW)
    removed = await machine.collect_garbage()
    assert {path.parent.name for path in removed} == {"gone", "default"}
    assert not machine.home.stack("default/gone", "s2").exists()
    assert (await machine.traffic.observe(gone)).live is None
    assert set(await machine.stacks.observe(kept)) == {"s1"}
    assert await machine.collect_garbage() == []


async def test_what_an_object_runs_that_is_made_during_a_collection_is_no_garbage(machine, monkeypatch):
    """Its processes must not be compared with a list of objects from before it was made."""
    list_owners = machine.store.owners

    def owners():
        found = list_owners()
        model = machine.store.apply(MODEL, now=NOW).model
        asyncio.run(machine.stacks.create(model, record("s1"), 1))
        return found

    monkeypatch.setattr(machine.store, "owners", owners)
    assert await machine.collect_garbage() == []


@pytest.mark.parametrize("damage", ["{", '{"formatVersion": 1}'])
async def test_damaged_files_of_the_living_are_kept_and_do_not_stop_the_collection(machine, damage):
    kept = machine.store.apply(MODEL, now=NOW).model
    gone = kept.model_copy(update={"metadata": kept.metadata.model_copy(update={"name": "gone", "uid": "uid-9"})})
    for model in (kept, gone):
        await machine.stacks.create(model, record("s1"), 1)
        await machine.traffic.switch(model, record("s1"), "0", NOW)
    damaged = [machine.home.traffic_file(kept.key), machine.home.stack(kept.key, "s1") / "stack.json"]
    for path in damaged:
        path.write_text(damage)
    assert {path.name for path in await machine.collect_garbage()} == {"gone", "s1"}
    assert not machine.home.stack(gone.key, "s1").exists()
    assert [path.read_text() for path in damaged] == [damage, damage]
    another = kept.model_copy(update={"metadata": kept.metadata.model_copy(update={"name": "another"})})
    await machine.stacks.create(another, record("s1"), 1)
    assert set(await machine.stacks.observe(another)) == {"s1"}


async def test_the_children_of_an_object_that_cannot_be_read_are_no_garbage(machine):
    model = machine.store.apply(MODEL, now=NOW).model
    await machine.stacks.create(model, record("s1"), 1)
    machine.home.object_file(model.key).write_text("kind: [")
    assert await machine.collect_garbage() == []


async def test_bytes_pass_both_ways_and_a_half_closed_side_stays_half_closed(tmp_path):
    """A client that ends its request by closing its sending side still gets the whole answer."""

    async def echo_all(reader, writer):
        writer.write(await reader.read())
        writer.close()

    upstream = await asyncio.start_server(echo_all, "127.0.0.1", 0)
    dead = socket.create_server(("127.0.0.1", 0))
    dead_port = dead.getsockname()[1]
    dead.close()
    stack = tmp_path / "stack.json"
    stack.write_text(json.dumps({"ports": [dead_port, upstream.sockets[0].getsockname()[1]]}))
    traffic = tmp_path / "traffic.json"
    traffic.write_text(json.dumps({"stack_file": str(stack)}))
    proxy = Proxy(str(traffic))
    sent = bytes(range(256)) * 40_000  # 10 MB: more than all buffers hold
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serving = asyncio.create_task(proxy.serve("127.0.0.1", port))
    try:
        for _ in range(2):  # the dead replica's turn comes, too

            async def connection():
                try:
                    return await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return None

            reader, writer = await eventually(connection)
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
            writer.close()
    finally:
        serving.cancel()
        upstream.close()


async def test_without_a_live_stack_a_connection_is_reset_not_left_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval_operator.adapters.local.proxy._PATIENCE_S", 0.1)
    proxy = Proxy(str(tmp_path / "missing.json"))
    server = await asyncio.start_server(proxy._handle, "127.0.0.1", 0)
    async with server:
        reader, _ = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def who_or_none(machine):
    try:
        return await who((await machine.traffic.observe(MODEL)).address)
    except httpx.TransportError:
        return None


def process_ids(machine, stack):
    paths = machine.home.stack("default/feed", stack).glob("replica-*")
    return [machine.supervisor.observe(path).pid for path in sorted(paths)]


def kill(pid):
    os.kill(pid, signal.SIGKILL)

"""What the command line and the control plane do to stored objects."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Rejected

NOW = 1_700_000_000


def test_apply_says_what_it_did(store, make):
    outcomes = [
        store.apply(make(), now=NOW).outcome,
        store.apply(make(), now=NOW + 1).outcome,
        store.apply(make(suspend=True), now=NOW + 2).outcome,
        store.apply(make(suspend=True, data={"revision": "1", "uri": "/data"}), now=NOW + 3).outcome,
        store.apply(make(suspend=True, annotations={"note": "x"}), now=NOW + 4).outcome,
    ]
    assert outcomes == ["created", "unchanged", "configured", "unchanged", "configured"]


def test_an_unchanged_apply_does_not_touch_the_file(store, home, make):
    store.apply(make(), now=NOW)
    before = home.object_file("default/feed").stat()
    store.apply(make(), now=NOW + 1)
    assert home.object_file("default/feed").stat().st_mtime_ns == before.st_mtime_ns


async def test_annotations_set_by_command_survive_an_apply_and_can_be_removed(store, make):
    store.apply(make(annotations={"from": "manifest"}), now=NOW)
    store.annotate("default/feed", {"retrieval-operator.io/retry": "1"})
    store.apply(make(annotations={"from": "manifest 2"}, suspend=True), now=NOW)
    annotations = (await store.get("default/feed")).metadata.annotations
    assert annotations == {"from": "manifest 2", "retrieval-operator.io/retry": "1"}
    store.annotate("default/feed", {"retrieval-operator.io/retry": None})
    assert (await store.get("default/feed")).metadata.annotations == {"from": "manifest 2"}


def test_annotating_an_unknown_object_says_that_it_does_not_exist(store):
    with pytest.raises(Gone, match="default/feed does not exist"):
        store.annotate("default/feed", {"a": "b"})


@pytest.mark.parametrize(
    ("change", "path", "found", "expected"),
    [
        ({"storage": {"uri": "/elsewhere"}}, "spec.storage.uri", "/elsewhere", "/storage"),
        ({"registry": {"name": "other"}}, "spec.registry.name", "other", "default.feed"),
        ({"registry": {"connection": "prod"}}, "spec.registry.connection", "prod", "default"),
    ],
)
async def test_an_immutable_field_cannot_be_changed(store, make, change, path, found, expected):
    store.apply(make(), now=NOW)
    with pytest.raises(Rejected, match=rf"default/feed: {path}: found '{found}', expected '{expected}' \(immutable\)"):
        store.apply(make(**change, suspend=True), now=NOW)
    assert not (await store.get("default/feed")).spec.suspend


def test_naming_the_default_of_an_immutable_field_is_no_change_of_it(store, make):
    store.apply(make(), now=NOW)
    store.apply(make(registry={"name": "default.feed", "connection": "default"}), now=NOW)


@pytest.mark.parametrize(
    ("mine", "name"),
    [
        ("file:///storage/default/feed", "inner"),  # inside the other's prefix
        ("/storage/default/feed/revisions", "inner"),
        ("/elsewhere/../storage/default/feed", "inner"),
        ("file:///elsewhere/%2e%2e/storage/default/feed", "inner"),
        ("//storage//default/./feed", "inner"),
    ],
)
async def test_two_objects_cannot_share_storage(store, make, mine, name):
    store.apply(make(), now=NOW)
    with pytest.raises(Rejected, match=r"spec.storage.uri: .* apart from /storage/default/feed, which default/feed"):
        store.apply(make(name, storage={"uri": mine}), now=NOW)
    assert await store.keys() == ["default/feed"]


@pytest.mark.parametrize("inner", ["s3://bucket/x/default/feed", "s3://bucket/y/../x//default/feed"])
def test_neither_can_they_share_a_bucket_prefix(store, make, inner):
    store.apply(make(storage={"uri": "s3://bucket/x/"}), now=NOW)
    with pytest.raises(Rejected, match="apart from s3://bucket/x/default/feed"):
        store.apply(make("inner", storage={"uri": inner}), now=NOW)
    store.apply(make("inner", storage={"uri": inner.replace("bucket", "other")}), now=NOW)


def test_the_same_storage_root_serves_any_number_of_objects(store, make):
    store.apply(make("feed"), now=NOW)
    store.apply(make("feed-two"), now=NOW)
    store.apply(make("feed", namespace="other"), now=NOW)
    store.apply(make("remote", storage={"uri": "s3://bucket/x"}), now=NOW)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"storage": {"uri": "state"}}, "spec.storage.uri"),
        ({"data": {"uri": "./data", "revision": "1"}}, "spec.data.uri"),
        ({"model": {"base": "models/llama"}}, "spec.model.base"),
        ({"model": {"bundleUri": "bundle"}}, "spec.model.bundleUri"),
    ],
)
def test_a_relative_path_is_refused_for_it_would_mean_another_place_to_each_process(store, make, spec, path):
    with pytest.raises(Rejected, match=rf"{path}: found .*, expected an absolute path or a URI"):
        store.apply(make(**spec), now=NOW)


async def test_an_object_that_is_being_deleted_cannot_be_applied(store, make):
    model = store.apply(make(), now=NOW).model
    await store.set_finalizer(model, True)
    assert store.request_deletion("default/feed", now=NOW) is False
    with pytest.raises(Rejected, match="is being deleted"):
        store.apply(make(suspend=True), now=NOW)
    await store.set_finalizer(model, False)
    assert store.apply(make(), now=NOW).outcome == "created"


def test_asking_for_deletion_tells_whether_the_object_is_gone(store, make):
    store.apply(make(), now=NOW)
    assert store.request_deletion("default/feed", now=NOW) is True
    with pytest.raises(Gone):
        store.request_deletion("default/feed", now=NOW)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"formatVersion": 9}', b'{"formatVersion": 1}'])
async def test_a_damaged_status_is_a_wiped_status_and_says_so(store, home, make, damage):
    model = store.apply(make(), now=NOW).model
    await store.write_status(model, RetrievalModelStatus(phase="Live"))
    home.status_file("default/feed").write_bytes(damage)
    with capture_logs() as logs:
        found = await store.get("default/feed")
    assert found.spec == model.spec
    assert found.status == RetrievalModelStatus()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    await store.write_status(model, RetrievalModelStatus(phase="Live"))
    assert (await store.get("default/feed")).status.phase == "Live"


async def test_a_status_with_a_field_of_a_newer_version_is_read(store, home, make):
    model = store.apply(make(), now=NOW).model
    await store.write_status(model, RetrievalModelStatus(phase="Live"))
    path = home.status_file("default/feed")
    path.write_text(path.read_text().replace('"phase"', '"novelty": 1, "phase"'))
    assert (await store.get("default/feed")).status.phase == "Live"


async def test_a_damaged_object_is_refused_by_its_path_and_not_lost(store, home, make):
    store.apply(make(), now=NOW)
    home.object_file("default/feed").write_text("kind: [")
    assert await store.keys() == ["default/feed"]
    with pytest.raises(Rejected, match=r"objects/default/feed\.yaml"):
        await store.get("default/feed")
    assert store.owners() == {"default/feed": None}


async def test_events_keep_their_times_and_the_newest_comes_last(store, make):
    model = store.apply(make(), now=NOW).model
    for number, message in enumerate(["one", "two", "one"]):
        await store.emit(model, EmitEvent(type="Normal", reason=Reason.TRAINING, message=message), NOW + number)
    assert [(event.message, event.count, event.first_seen, event.last_seen) for event in store.events(model.key)] == [
        ("two", 1, NOW + 1, NOW + 1),
        ("one", 2, NOW, NOW + 2),
    ]


async def test_events_are_bounded_and_damaged_lines_are_left_out(store, home, make, monkeypatch):
    monkeypatch.setattr("retrieval_operator.adapters.local.store._EVENTS_KEPT", 4)
    model = store.apply(make(), now=NOW).model
    for number in range(6):
        await store.emit(model, EmitEvent(type="Normal", reason=Reason.TRAINING, message=str(number)), NOW)
    assert [event.message for event in store.events(model.key)] == [str(number) for number in range(2, 6)]
    with home.events_file(model.key).open("a") as stream:
        stream.write("{half a li")
    assert len(store.events(model.key)) == 4


async def test_an_object_applied_again_after_its_deletion_starts_with_nothing(store, make):
    model = store.apply(make(), now=NOW).model
    await store.write_status(model, RetrievalModelStatus(phase="Live"))
    await store.emit(model, EmitEvent(type="Normal", reason=Reason.TRAINING, message="text"), NOW)
    store.request_deletion(model.key, now=NOW)
    again = store.apply(make(), now=NOW).model
    assert again.metadata.uid != model.metadata.uid
    assert store.events(model.key) == []
    assert (await store.get(model.key)).status == RetrievalModelStatus()


async def test_concurrent_commands_lose_no_change(home, make):
    LocalModelStore(home).apply(make(), now=NOW)

    def annotate(worker):
        for number in range(5):
            LocalModelStore(home).annotate("default/feed", {f"w{worker}-{number}": "x"})

    threads = [threading.Thread(target=annotate, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((await LocalModelStore(home).get("default/feed")).metadata.annotations) == 20

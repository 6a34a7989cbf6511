"""What must be in a cluster before work can succeed: definitions, claims, an address; it is said beforehand."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    NAMESPACE,
    PERSISTENT_VOLUME_CLAIM,
    PYTORCH_JOB,
    SERVICE,
)
from retrieval_operator.ports import Rejected


async def test_nothing_is_missing_where_all_is_there(told, model, claims):
    assert await told(model) == {}


async def test_definitions_that_are_not_installed_are_named_with_the_way_out(told, world, model, make, claims):
    world.cache.unwatch(PYTORCH_JOB)
    world.cache.unwatch(INFERENCE_SERVICE)
    found = await told(model)
    assert set(found) == {"trainingOperator", "kserve"}
    assert "training.backend: Job" in found["trainingOperator"]
    alone = make(lambda spec: spec["training"].update(backend="Job", nodes=1))
    assert set(await told(alone)) == {"kserve"}


@pytest.mark.parametrize(("length", "is_told"), [(43, False), (44, True)])
async def test_a_name_of_which_kserve_makes_no_host_is_told_before_the_training(
    surroundings, world, model, claims, length, is_told
):
    """<name>-<stack>-predictor-<namespace> is one label of its host name."""
    namespace = "n" * (length - len("feed"))
    model = model.model_copy(update={"metadata": model.metadata.model_copy(update={"namespace": namespace})})
    found = [problem for problem in await surroundings.problems(model) if problem.dependency == "kserve"]
    assert [problem.holds_back for problem in found] == ([False] if is_told else [])
    assert all("have 44 characters together" in problem.message for problem in found)
    assert all("no host name of more than 43" in problem.message for problem in found)


async def test_the_storage_is_told_apart_by_the_uid_of_its_claim(surroundings, world, model, make, claims):
    first = await surroundings.storage_id(model)
    assert first == world.object(PERSISTENT_VOLUME_CLAIM, "search", "models")["metadata"]["uid"] != ""
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "models")
    world.put(claims["models"])
    again = model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": "another-object"})})
    assert await surroundings.storage_id(again) not in ("", first)


async def test_the_storage_is_not_guessed(surroundings, world, model, make):
    assert await surroundings.storage_id(model) == "", "its claim is not there"
    unclaimed = make(lambda spec: spec["storage"].pop("persistentVolumeClaim"))
    assert await surroundings.storage_id(unclaimed) == ""


@pytest.mark.parametrize(
    ("phase", "words"),
    [("Bound", None), ("Pending", None), ("Lost", "has lost its volume"), (None, "does not exist")],
)
async def test_a_claim_must_exist_and_may_wait_for_its_first_pod(surroundings, world, model, claims, phase, words):
    if phase is None:
        world.remove(PERSISTENT_VOLUME_CLAIM, "search", "models")
    else:
        world.set_status(PERSISTENT_VOLUME_CLAIM, "search", "models", {"phase": phase})
    problems = await surroundings.problems(model)
    assert [problem.holds_back for problem in problems] == ([True] if words else [])
    assert all(words in problem.message for problem in problems)


async def test_claims_of_volumes_count_and_are_named_by_their_field(told, world, model, claims):
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "base-models")
    assert "training.pod.volumes: PersistentVolumeClaim search/base-models" in (await told(model))["storage"]


async def test_a_claim_is_asked_for_once_in_a_while(surroundings, world, model, now, claims):
    for _ in range(3):
        await surroundings.problems(model)
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 1
    now[0] += 60
    await surroundings.problems(model)
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 2


async def test_of_an_object_that_is_deleted_it_matters_whether_its_namespace_goes_too(
    told, world, model, claims, going
):
    assert await told(going) == {}
    world.terminate_namespace("search")
    assert await told(going) == {"namespace": "namespace search is being deleted"}


async def test_the_namespace_of_an_object_that_stays_is_not_asked_for(told, world, model, claims):
    world.terminate_namespace("search")
    assert await told(model) == {}
    assert ("get", "Namespace", "search") not in world.requests


async def test_an_operator_that_may_not_see_the_namespace_takes_it_for_one_that_stays(
    told, world, model, claims, going
):
    world.terminate_namespace("search")
    world.fail("get", NAMESPACE, Rejected("forbidden"))
    assert await told(going) == {}


async def test_what_this_operator_may_not_see_is_no_problem(told, world, model):
    world.fail("get", PERSISTENT_VOLUME_CLAIM, Rejected("forbidden"), times=2)
    assert await told(model) == {}


async def test_a_claim_cannot_be_mounted_at_a_remote_address(told, make, claims):
    model = make(lambda spec: spec["storage"].update(uri="s3://bucket/models"))
    assert "expected an absolute path" in (await told(model))["storage"]


def address(**metadata: Any) -> dict[str, Any]:
    metadata = {"name": "feed", "namespace": "search", **metadata}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": "theirs"}}}


def of_a_model(uid: str) -> dict[str, Any]:
    owner = {"kind": "RetrievalModel", "name": "feed", "uid": uid}
    return {"labels": {"app.kubernetes.io/managed-by": "retrieval-operator"}, "ownerReferences": [owner]}


LOOKED = ("get", "Service", "feed")


async def test_an_address_that_is_somebody_elses_holds_work_back_before_there_is_a_champion(
    told, surroundings, world, model, now, claims
):
    world.put(address())
    (problem,) = await surroundings.problems(model)
    assert problem.holds_back
    assert "Service search/feed is taken by somebody else's; delete or rename that one" in problem.message
    world.remove(SERVICE, "search", "feed")
    now[0] += 60
    assert await told(model) == {}


async def test_whose_the_address_is_is_asked_for_once_in_a_while(surroundings, world, model, now, claims):
    for _ in range(3):
        await surroundings.problems(model)
    assert world.requests.count(LOOKED) == 1
    now[0] += 60
    await surroundings.problems(model)
    assert world.requests.count(LOOKED) == 2


async def test_an_object_with_a_champion_does_not_ask_for_its_address(told, world, model, claims):
    world.put(address(**of_a_model(model.metadata.uid)))
    assert await told(model) == {}
    assert LOOKED not in world.requests


async def test_nor_does_one_that_begins_nothing(told, world, model, make, claims, going):
    world.put(address())
    suspended = make(lambda spec: spec.update(suspend=True))
    for resting in (suspended, going):
        assert await told(resting) == {}
    assert LOOKED not in world.requests


async def test_the_address_of_a_former_object_goes_by_itself(told, world, model, claims):
    world.put(address(**of_a_model("of-the-former")))
    assert await told(model) == {}


async def test_an_address_that_lost_its_label_holds_work_back_until_it_has_it_again(
    told, surroundings, world, model, now, claims
):
    """The watches do not tell of it, so it looks as if there were no champion."""
    ours = of_a_model(model.metadata.uid)
    world.put(address(**ours))
    world.change(SERVICE, "search", "feed", {"metadata": {"labels": None}})
    (problem,) = await surroundings.problems(model)
    assert problem.holds_back
    assert "set app.kubernetes.io/managed-by=retrieval-operator" in problem.message
    world.change(SERVICE, "search", "feed", {"metadata": {"labels": ours["labels"]}})
    assert await told(model) == {}


async def test_an_operator_that_may_not_see_services_takes_the_address_for_free(told, world, model, claims):
    world.put(address())
    world.fail("get", SERVICE, Rejected("forbidden"))
    assert await told(model) == {}

"""The API server and the pydantic types accept and refuse the same manifests: random ones, where rules meet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from retrieval_operator.api.constants import API_VERSION, GROUP, KIND, VERSION
from retrieval_operator.api.objects import InvalidManifest, parse_manifest
from retrieval_operator.domain.changes import immutable_fields

pytestmark = pytest.mark.e2e

OBJECTS = (GROUP, VERSION, "default", "retrievalmodels")
AGREE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


DECIMALS = st.sampled_from(
    [
        *("0", "-0", "1", "1.0", "0.5", "00.1", "1e-5", "2.5E-9", "1e-12", "0.123456789012", "0.1234567890123"),
        *("999999", "1000000", "-0.1", "1.01", ".5", "1.", "+1", " 1", "1_0", "1e5", "1e+1", "0x1"),
        *("NaN", "Infinity", "", "one"),
    ]
)
GOOD_DECIMALS = st.sampled_from(["0", "0.2", "1", "1e-5"])
GATE = some_of(
    metric=st.sampled_from(["recall", "hitRate"]),
    k=st.sampled_from([10, 11]),
    pool=st.sampled_from(["matched", "corpus"]),
    segment=st.sampled_from(["all", "new"]),
    min=GOOD_DECIMALS,
    maxRegression=GOOD_DECIMALS,
    maxDropFromBest=GOOD_DECIMALS,
    dryRun=st.booleans(),
)
REFERENCE = st.just({"name": "n", "key": "k"})
ENVIRONMENT = some_of(value=st.sampled_from(["", "v"]), secret=REFERENCE, configMap=REFERENCE)
VOLUME = some_of(
    persistentVolumeClaim=st.just("c"), configMap=st.just("c"), secret=st.just("s"), emptyDirSize=st.just("1Gi")
)
URIS = st.sampled_from(
    [
        "/a",
        "a",
        "s3://b/c",
        "s3://u:p@b/c",
        "s3://u@b",
        "s3://b/u@c",
        "s3:///u@c",
        "/a://b@c",
        "x://y://z@w",
        "zip://x::s3://u:p@b/c",
        "zip://x::s3://b/u@c",
        "u@h",
        "@",
    ]
)

GATES = st.lists(GATE, min_size=1, max_size=4).map(lambda gates: {"promotion": {"gates": gates}})
MODELS = st.fixed_dictionaries(
    {
        "model": some_of(
            base=URIS,
            bundleUri=URIS,
            dimensions=st.lists(st.sampled_from([8, 16, 32, 64]), min_size=1, max_size=4),
            servedDimension=st.sampled_from([8, 16, 32, 64]),
        ),
        "data": some_of(schedule=st.just("0 3 * * *")).map(lambda data: {"uri": "/d", "revision": "1", **data}),
    }
)
TRAININGS = st.fixed_dictionaries(
    {
        "training": some_of(
            backend=st.sampled_from(["Job", "PyTorchJob"]),
            nodes=st.sampled_from([1, 2]),
            hyperparameters=some_of(
                steps=st.just(1),
                epochs=st.just(1),
                learningRate=DECIMALS,
                warmupFraction=DECIMALS,
                weightDecay=DECIMALS,
            ),
        ),
        "evaluation": some_of(confidence=DECIMALS),
    }
)
SERVINGS = st.fixed_dictionaries(
    {
        "serving": some_of(
            replicas=some_of(min=st.integers(0, 3), max=st.integers(0, 3)),
            pod=some_of(
                env=st.lists(ENVIRONMENT, max_size=2).map(
                    lambda entries: [{"name": f"V{number}", **entry} for number, entry in enumerate(entries)]
                ),
                volumes=st.lists(VOLUME, max_size=2).map(
                    lambda entries: [
                        {"name": f"v{number}", "mountPath": "/v", **entry} for number, entry in enumerate(entries)
                    ]
                ),
            ),
        )
    }
)
PROMPT_FIELDS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["title", "topic", "history", "engagements", "a<b", "語", "\x85"]),
            "rendering": st.sampled_from(["text", "category", "percentile"]),
        },
        optional={"maxTokens": st.integers(0, 12)},
    ),
    min_size=1,
    max_size=3,
)
PROMPT = {"fields": PROMPT_FIELDS, "maxTokens": st.integers(1, 40)}
PAST_ITEMS = st.fixed_dictionaries({"maxItems": st.integers(0, 2), "fields": PROMPT_FIELDS})
PROMPTS = st.fixed_dictionaries(
    {"member": st.fixed_dictionaries(PROMPT, optional={"history": PAST_ITEMS}), "item": st.fixed_dictionaries(PROMPT)}
).map(lambda prompts: {"model": {"base": "preset:tiny", "prompts": prompts}})

NUMBERS = st.sampled_from(["0", "1", "05", "7", "8", "12", "23", "24", "31", "59", "60"])
END = st.one_of(NUMBERS, st.sampled_from(["JAN", "feb", "DEC", "SUN", "mon", "Sat", "DEZ", "L"]))
TERM = st.one_of(
    st.just("*"),
    NUMBERS,
    END,
    st.builds("{}-{}".format, END, END),
    st.builds("{}/{}".format, st.one_of(st.just("*"), NUMBERS, st.just("1-5")), NUMBERS),
    st.builds("{}#{}".format, END, NUMBERS),
    st.sampled_from(["5L", "LW", "L", "?", "", "MON-FRI/2", "1-5-7", "*/*"]),
)
FIELD = st.lists(TERM, min_size=1, max_size=2).map(",".join)
GOOD = st.sampled_from(["*", "1", "1-5"])


def with_one_of(place: int, field: str, others: list[str]) -> dict[str, Any]:
    """One field at random among good ones, or the texts would nearly all be refused."""
    schedule = " ".join([*others[:place], field, *others[place:]])
    return {"data": {"uri": "/data", "revision": "1", "schedule": schedule}}


SCHEDULES = st.builds(with_one_of, st.integers(0, 4), FIELD, st.lists(GOOD, min_size=4, max_size=4))
NAMES = st.text("ab1-.", min_size=1, max_size=34)
IMMUTABLES = st.fixed_dictionaries(
    {"storage": st.sampled_from(["/store", "/other"]).map(lambda uri: {"uri": uri})},
    optional={
        "registry": some_of(connection=st.sampled_from(["default", "other"]), name=st.sampled_from(["one", "two"])),
        "index": some_of(engine=st.just("faiss"), factory=st.just("Flat")),
    },
)


def manifest(name: str = "feed", **spec: Any) -> dict[str, Any]:
    defaults = {
        "storage": {"uri": "/store"},
        "data": {"uri": "/data", "revision": "1"},
        "model": {"base": "preset:tiny"},
        "promotion": {"gates": [{"min": "0.2"}]},
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": defaults | spec}


def said_here(document: dict[str, Any]) -> str:
    """The problems, "" when it is accepted."""
    try:
        parse_manifest(document, "feed.yaml")
    except InvalidManifest as error:
        return str(error)
    return ""


def said_there(objects: client.CustomObjectsApi, document: dict[str, Any]) -> str:
    try:
        objects.create_namespaced_custom_object(*OBJECTS, document, dry_run="All", field_validation="Strict")
    except ApiException as error:
        assert error.status == 422, error.body
        return str(error.body)
    return ""


def agree(here: str, there: str) -> None:
    assert bool(here) == bool(there), f"the types say {here!r}, the API server says {there!r}"


@AGREE
@given(spec=st.one_of(GATES, MODELS, TRAININGS, SERVINGS, PROMPTS))
def test_both_accept_and_refuse_the_same_specs(objects: client.CustomObjectsApi, spec: dict[str, Any]) -> None:
    agree(said_here(manifest(**spec)), said_there(objects, manifest(**spec)))


@AGREE
@given(spec=SCHEDULES)
def test_both_accept_and_refuse_the_same_schedules(objects: client.CustomObjectsApi, spec: dict[str, Any]) -> None:
    agree(said_here(manifest(**spec)), said_there(objects, manifest(**spec)))


@AGREE
@given(name=NAMES)
def test_both_accept_and_refuse_the_same_names(objects: client.CustomObjectsApi, name: str) -> None:
    agree(said_here(manifest(name)), said_there(objects, manifest(name)))


@AGREE
@given(before=IMMUTABLES, after=IMMUTABLES)
def test_both_see_the_same_edits_of_immutable_fields(
    objects: client.CustomObjectsApi, before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = (immutable_fields(parse_manifest(manifest(**spec), "feed.yaml")) for spec in (before, after))
    stored = objects.create_namespaced_custom_object(*OBJECTS, manifest(**before))
    try:
        edited = manifest(**after)
        edited["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        objects.replace_namespaced_custom_object(*OBJECTS, "feed", edited, dry_run="All")
        refused = ""
    except ApiException as error:
        assert error.status == 422, error.body
        refused = str(error.body)
    finally:
        objects.delete_namespaced_custom_object(*OBJECTS, "feed")
    agree("changed" if old != new else "", refused)

"""An object that an older definition let in, under the present one: the operator must be able to say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from manifest_cases import CASES
from merge_patch import merge_patch
from operator_process import install_definition, until

from retrieval_operator.api.constants import GROUP, VERSION
from retrieval_operator.api.crd import CRD_FILE, crd

pytestmark = pytest.mark.e2e

OBJECTS = (GROUP, VERSION, "default", "retrievalmodels")
SCHEMA = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
WIDE = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
NARROW = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
FIELDS = {"fields": [{"name": "title"}, {"rendering": "text"}, {"name": "title"}]}
OLD = {
    "a schedule": {"data": {"schedule": "61 3 * * *"}},
    "a time zone": {"data": {"timeZone": "Mars/Olympus"}},
    "prompts of one side": {"model": {"prompts": {"item": FIELDS}}},
    "prompts without most": {"model": {"prompts": {"member": {"history": FIELDS}, "item": {"maxTokens": 9}}}},
    "prompts that do not fit": {"model": {"prompts": {"member": {**FIELDS, "history": FIELDS, "maxTokens": 1}}}},
}


@pytest.fixture(scope="module")
def stored(own_api_server: Path) -> Iterator[client.CustomObjectsApi]:
    """The API for custom objects, with an object for each of OLD."""
    install_definition(own_api_server)
    with config.new_client_from_config(config_file=str(own_api_server)) as connection:
        definitions, objects = client.ApiextensionsV1Api(connection), client.CustomObjectsApi(connection)

        def define(schema: dict[str, Any]) -> None:
            change = [{"op": "replace", "path": SCHEMA, "value": schema}]
            definitions.patch_custom_resource_definition(CRD_FILE.removesuffix(".yaml"), change)

        def answer(written: dict[str, Any]) -> int:
            """The code of a try; for a moment after a change of the definition it is 503 or worse."""
            try:
                objects.create_namespaced_custom_object(*OBJECTS, written, dry_run="All")
            except ApiException as error:
                return int(error.status)
            return 201

        documents = [document(title) for title in OLD]
        define(WIDE)
        until(lambda: {answer(old) for old in documents} == {201}, "the older definition is in force")
        for written in documents:
            objects.create_namespaced_custom_object(*OBJECTS, written)
        define(NARROW)
        until(lambda: {answer(old) for old in documents} == {422}, "the present definition is in force")
        yield objects


def document(title: str) -> dict[str, Any]:
    name = {"metadata": {"name": title.replace(" ", "-")}}
    return merge_patch(CASES["manifest"], {**name, "spec": OLD[title]})


@pytest.mark.parametrize("title", OLD)
def test_a_status_is_written_though_the_spec_would_be_refused_now(stored: client.CustomObjectsApi, title: str) -> None:
    name = document(title)["metadata"]["name"]
    written = stored.patch_namespaced_custom_object_status(*OBJECTS, name, {"status": {"phase": "Stalled"}})
    assert written["status"]["phase"] == "Stalled"
    assert written["spec"] == document(title)["spec"]

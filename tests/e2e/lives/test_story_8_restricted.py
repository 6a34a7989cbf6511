"""All of it happens where PodSecurity "restricted" is enforced, so every pod of a life was admitted there.

Of the namespaces that come and go meanwhile `new_place` says so when it makes them.
"""

from __future__ import annotations

import json

import pytest
from lives.namespaces import DOOMED, ENFORCED
from lives.place import Kubectl, Place

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_every_namespace_with_an_object_enforces_restricted(shared_life: Place, kubectl: Kubectl) -> None:
    objects = json.loads(kubectl("get", "retrievalmodels", "--all-namespaces", "--output=json"))["items"]
    lived_in = {one["metadata"]["namespace"] for one in objects} - {DOOMED}
    assert shared_life.namespace in lived_in
    for name in lived_in:
        namespace = json.loads(kubectl("get", "namespace", name, "--output=json"))
        assert namespace["metadata"]["labels"].get(ENFORCED) == "restricted", name


def test_a_pod_that_asks_for_more_is_refused_there(shared_life: Place, clients_image: str) -> None:
    with pytest.raises(AssertionError, match='violates PodSecurity "restricted'):
        shared_life.run("run", "privileged", f"--image={clients_image}", "--privileged", "--dry-run=server")

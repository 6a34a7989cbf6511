"""The registered model of one object: a version per bundle, tags and description for people, aliases.

As with runs, two writers may both create a version (MLflow has no unique tags): whoever creates looks again, the lowest
number stays, the others are deleted. Aliases have no compare-and-set either: the last writer wins, and `decide` repairs
them from the traffic in its next pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import structlog

from retrieval_operator.adapters.mlflow.limits import cut_description, cut_tag
from retrieval_operator.adapters.mlflow.rest import AlreadyExists, NotFound, RestClient
from retrieval_operator.adapters.mlflow.runs import Run, quoted, tags_of
from retrieval_operator.api.constants import TAG_BUNDLE_ID, TAG_OWNER
from retrieval_operator.domain.observed import VersionObserved
from retrieval_operator.domain.plan import RegisterVersion
from retrieval_operator.ports import Rejected, Stale

BUNDLE_ARTIFACT = "bundle"  # where the trainer logs bundle.json and the card

log = structlog.get_logger(__name__)


class Versions:
    """The model versions of one MLflow."""

    def __init__(self, rest: RestClient) -> None:
        self._rest = rest

    async def observe(self, owner: str, name: str) -> tuple[dict[str, VersionObserved], dict[str, str]]:
        """The owner's versions by bundle id (of twins the lowest number), and all aliases of the model.

        Both are empty when the registered model does not exist or is another's. Two requests.
        """
        model = await self._model(name)
        if model is None or tags_of(model).get(TAG_OWNER) != owner:
            return {}, {}
        versions: dict[str, VersionObserved] = {}
        for version in await self._search(owner, name):
            versions.setdefault(version.bundle_id, version)
        return versions, _aliases(model)

    async def register(self, owner: str, name: str, wanted: RegisterVersion, run: Run) -> None:
        """Find the bundle's version or create it. Raises Rejected when the registered model is another owner's."""
        await self._ensure_model(owner, name)
        twins = await self._of_bundle(owner, name, wanted.bundle_id)
        if not twins:
            tags = {**wanted.tags, TAG_OWNER: owner, TAG_BUNDLE_ID: wanted.bundle_id}
            await self._rest.post(
                "model-versions/create",
                {
                    "name": name,
                    # Inside the run's own artifacts: a tracking server refuses sources elsewhere.
                    "source": f"{run.artifact_uri}/{BUNDLE_ARTIFACT}",
                    "run_id": run.run_id,
                    "tags": [{"key": key, "value": cut_tag(value)} for key, value in tags.items()],
                    "description": cut_description(wanted.description),
                },
            )
            twins = await self._of_bundle(owner, name, wanted.bundle_id)
        for twin in twins[1:]:
            log.warning("registry.twin_version_deleted", model=name, version=twin.number, kept=twins[0].number)
            with contextlib.suppress(NotFound):  # the other writer did it
                await self._rest.send("DELETE", "model-versions/delete", body={"name": name, "version": twin.number})

    async def describe(self, name: str, number: str, tags: Mapping[str, str], description: str | None) -> None:
        """Write what differs. One read, and one write for each tag (MLflow has no batch for them)."""
        key = {"name": name, "version": number}
        found = await self._rest.find("model-versions/get", key)
        if found is None:
            raise Stale(f"version {number} of the registered model {name!r} does not exist")
        current = tags_of(found["model_version"])
        for tag, value in tags.items():
            if value and current.get(tag) != cut_tag(value):
                await self._rest.post("model-versions/set-tag", {**key, "key": tag, "value": cut_tag(value)})
            elif not value and tag in current:
                await self._rest.send("DELETE", "model-versions/delete-tag", body={**key, "key": tag})
        if description is not None:
            text = cut_description(description)
            if text != found["model_version"].get("description", ""):
                await self._rest.send("PATCH", "model-versions/update", body={**key, "description": text})

    async def set_alias(self, name: str, alias: str, number: str) -> None:
        """Point the alias at the version, or remove it when `number` is "". Raises Stale without such a version."""
        model = await self._model(name)
        current = _aliases(model).get(alias, "") if model else ""
        if current == number:
            return
        body = {"name": name, "alias": alias}
        if number:
            await self._rest.post("registered-models/alias", {**body, "version": number})
        else:
            await self._rest.send("DELETE", "registered-models/alias", body=body)

    async def _model(self, name: str) -> dict[str, Any] | None:
        found = await self._rest.find("registered-models/get", {"name": name})
        return found["registered_model"] if found else None

    async def _ensure_model(self, owner: str, name: str) -> None:
        model = await self._model(name)
        if model is None:
            with contextlib.suppress(AlreadyExists):
                await self._rest.post(
                    "registered-models/create", {"name": name, "tags": [{"key": TAG_OWNER, "value": owner}]}
                )
            model = (await self._rest.get("registered-models/get", {"name": name}))["registered_model"]
        holder = tags_of(model).get(TAG_OWNER, "")
        if holder == owner:
            return
        if holder:
            raise Rejected(
                f"spec.registry.name: the registered model {name!r} belongs to {holder} (its tag {TAG_OWNER!r}), "
                f"this object is {owner}; choose another name"
            )
        # Prepared by an administrator, or somebody's own model? Its aliases would be ours to move, so only an empty
        # one is taken over without being asked.
        async for _ in self._rest.pages(
            "GET", "model-versions/search", "model_versions", {"filter": f"name = {quoted(name)}"}
        ):
            raise Rejected(
                f"spec.registry.name: the registered model {name!r} has versions that are not ours; choose another "
                f"name, or hand it over by setting its tag {TAG_OWNER!r} to {owner!r}"
            )
        await self._rest.post("registered-models/set-tag", {"name": name, "key": TAG_OWNER, "value": owner})

    async def _of_bundle(self, owner: str, name: str, bundle_id: str) -> list[VersionObserved]:
        return [version for version in await self._search(owner, name) if version.bundle_id == bundle_id]

    async def _search(self, owner: str, name: str) -> list[VersionObserved]:
        """The owner's versions that name a bundle, lowest number first."""
        query = {"filter": f"name = {quoted(name)} and tags.{TAG_OWNER} = {quoted(owner)}"}
        found = [
            VersionObserved(
                number=entry["version"],
                bundle_id=tags_of(entry)[TAG_BUNDLE_ID],
                tags=tags_of(entry),
                description=entry.get("description", ""),
            )
            async for entry in self._rest.pages("GET", "model-versions/search", "model_versions", query)
            if tags_of(entry).get(TAG_BUNDLE_ID)
        ]
        return sorted(found, key=lambda version: int(version.number))


def _aliases(model: Mapping[str, Any]) -> dict[str, str]:
    return {entry["alias"]: entry["version"] for entry in model.get("aliases", [])}

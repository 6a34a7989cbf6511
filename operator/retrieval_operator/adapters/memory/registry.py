"""The registry in memory: runs, versions, aliases and reports of any number of objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval_operator.adapters.memory.faults import Fake
from retrieval_operator.api.constants import TAG_BUNDLE_ID, TAG_KEY, TAG_OWNER, TAG_REPORT, TAG_STEP
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.observed import RegistryObserved, RunObserved, RunStatus, VersionObserved
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected, Stale


@dataclass(frozen=True)
class Entries:
    """Runs by (object's key, "step:key"); the rest by registered model name."""

    runs: Mapping[tuple[str, str], RunObserved] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, VersionObserved]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class MemoryRegistry(Fake[Entries]):
    """Fills the port Registry. `created` lists "run step:key" and "version bundle_id"."""

    def __init__(self, cluster: str = "memory") -> None:
        super().__init__(Entries())
        self._cluster = cluster
        self._run_count = 0

    async def observe(self, model: RetrievalModel) -> RegistryObserved:
        with self._call("observe", model.key):
            name = model.registered_model_name
            ours = self._seen.owners.get(name) == self._owner(model)
            return RegistryObserved(
                runs={ident: run for (key, ident), run in self._seen.runs.items() if key == model.key},
                versions={version.bundle_id: version for version in self._seen.versions.get(name, {}).values() if ours},
                aliases=dict(self._seen.aliases.get(name, {})) if ours else {},
                page=f"memory://registry/{name}",
            )

    async def ensure_run(self, model: RetrievalModel, run: EnsureRun) -> None:
        with self._call("ensure_run", f"{run.step}:{run.key}"):
            identity = (model.key, f"{run.step}:{run.key}")
            if identity in self._now.runs:
                return
            self._run_count += 1
            self.created.append(f"run {identity[1]}")
            tags = {**run.tags, TAG_OWNER: self._owner(model), TAG_STEP: run.step, TAG_KEY: run.key}
            made = RunObserved(run_id=f"run-{self._run_count}", step=run.step, key=run.key, tags=tags)
            self._change_entries(runs={**self._now.runs, identity: made})

    async def tag_run(self, model: RetrievalModel, run_id: str, tags: Mapping[str, str]) -> None:
        with self._call("tag_run", run_id):
            identity = self._run(run_id)
            run = self._now.runs[identity]
            withdrawn = {"report": None} if tags.get(TAG_REPORT) == "" else {}
            self._put_run(identity, tags={**run.tags, **tags}, **withdrawn)

    async def set_run_status(self, model: RetrievalModel, run_id: str, status: RunStatus) -> None:
        with self._call("set_run_status", run_id):
            self._put_run(self._run(run_id), status=status)

    async def register_version(self, model: RetrievalModel, version: RegisterVersion) -> None:
        with self._call("register_version", version.bundle_id):
            self._run(version.run_id)
            name, owner = model.registered_model_name, self._owner(model)
            if self._now.owners.get(name, owner) != owner:
                raise Rejected(f"the registered model {name!r} belongs to {self._now.owners[name]}")
            existing = self._now.versions.get(name, {})
            if any(other.bundle_id == version.bundle_id for other in existing.values()):
                return
            self.created.append(f"version {version.bundle_id}")
            made = VersionObserved(
                number=str(len(existing) + 1),
                bundle_id=version.bundle_id,
                tags={**version.tags, TAG_OWNER: owner, TAG_BUNDLE_ID: version.bundle_id},
                description=version.description,
            )
            self._change_entries(
                owners={**self._now.owners, name: owner},
                versions={**self._now.versions, name: {**existing, made.number: made}},
            )

    async def describe_version(
        self, model: RetrievalModel, version: str, tags: Mapping[str, str], description: str | None
    ) -> None:
        with self._call("describe_version", version):
            found = self._version(model, version)
            merged = {tag: value for tag, value in {**found.tags, **tags}.items() if value or tag not in tags}
            fields: dict[str, Any] = {"tags": merged}
            if description is not None:
                fields["description"] = description
            self._put_version(model, dataclasses.replace(found, **fields))

    async def set_alias(self, model: RetrievalModel, alias: str, version: str) -> None:
        with self._call("set_alias", alias):
            if version:
                self._version(model, version)
            name = model.registered_model_name
            rest = {other: number for other, number in self._now.aliases.get(name, {}).items() if other != alias}
            changed = {**rest, alias: version} if version else rest
            self._change_entries(aliases={**self._now.aliases, name: changed})

    def forget(self, key: str) -> None:
        """Runs and versions outlive their object, here as in MLflow; nothing else is remembered."""

    def attach_report(self, model: RetrievalModel, step: str, key: str, report: Mapping[str, Any]) -> None:
        """What a program does when its last file is complete."""
        self._put_run((model.key, f"{step}:{key}"), report=dict(report), status="Finished")

    def tag_version(self, model: RetrievalModel, version: str, tag: str, value: str) -> None:
        """What a reviewer does on the version's page."""
        found = self._version(model, version)
        self._put_version(model, dataclasses.replace(found, tags={**found.tags, tag: value}))

    def move_alias(self, model: RetrievalModel, alias: str, version: str) -> None:
        """What somebody does by hand, and the operator repairs."""
        name = model.registered_model_name
        aliases = {**self._now.aliases.get(name, {}), alias: version}
        self._change_entries(aliases={**self._now.aliases, name: aliases})

    def _owner(self, model: RetrievalModel) -> str:
        return f"{self._cluster}/{model.key}"

    def _run(self, run_id: str) -> tuple[str, str]:
        for identity, run in self._now.runs.items():
            if run.run_id == run_id:
                return identity
        raise Stale(f"the run {run_id!r} does not exist")

    def _version(self, model: RetrievalModel, number: str) -> VersionObserved:
        try:
            return self._now.versions[model.registered_model_name][number]
        except KeyError:
            raise Stale(f"version {number!r} of {model.registered_model_name!r} does not exist") from None

    def _put_run(self, identity: tuple[str, str], **fields: Any) -> None:
        run = dataclasses.replace(self._now.runs[identity], **fields)
        self._change_entries(runs={**self._now.runs, identity: run})

    def _put_version(self, model: RetrievalModel, version: VersionObserved) -> None:
        name = model.registered_model_name
        versions = {**self._now.versions[name], version.number: version}
        self._change_entries(versions={**self._now.versions, name: versions})

    def _change_entries(self, **fields: Any) -> None:
        self._change(dataclasses.replace(self._now, **fields))

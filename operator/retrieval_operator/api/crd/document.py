"""The CustomResourceDefinition as a whole: names, columns, versions."""

from __future__ import annotations

from typing import Any

import yaml

from retrieval_operator.api.constants import GROUP, KIND, VERSION
from retrieval_operator.api.crd.rules import ROOT_RULES
from retrieval_operator.api.crd.schema import structural_schema
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import RetrievalModelStatus

PLURAL = "retrievalmodels"
CRD_FILE = f"{PLURAL}.{GROUP}.yaml"
_HEADER = "# Generated from operator/retrieval_operator/api: python -m retrieval_operator.api.crd. Do not edit.\n"


def crd() -> dict[str, Any]:
    """The definition as a document of apiextensions.k8s.io/v1."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["rm"],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The text of crds/<CRD_FILE>."""
    return _HEADER + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def chart_template() -> str:
    """The text of the chart's templates/crd.yaml: the same, with switches to leave it out and to keep it.

    A template and not in the chart's crds/ folder: Helm never upgrades what is there.
    """
    keep = "  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n"
    header, definition = crd_yaml().split("\n", 1)
    metadata, rest = definition.split("\nspec:\n", 1)
    if "{{" in definition:
        raise ValueError("found {{ in the definition, which Helm would read as its own")
    return f"{header}\n{{{{- if .Values.crds.install }}}}\n{metadata}\n{keep}spec:\n{rest}{{{{- end }}}}\n"


class _Dumper(yaml.SafeDumper):
    """Without anchors, and safe for the YAML 1.1 of kubectl, to which a bare `n` (a field of ours) is false."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if text in ("y", "n", "Y", "N") else None
    ),
)


def _object_schema() -> dict[str, Any]:
    status = structural_schema(RetrievalModelStatus, closed_words=False)
    return {
        "type": "object",
        "description": f"{KIND} turns interaction data into a served retrieval system and keeps it fresh.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"apiVersion is {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"kind is {KIND}."},
            "metadata": {"type": "object"},
            "spec": _named("spec", structural_schema(RetrievalModelSpec)),
            "status": _named("status", status),
        },
        "x-kubernetes-validations": [rule.document() for rule in ROOT_RULES],
    }


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"description": f"{name}: {schema['description']}"}


def _columns() -> list[dict[str, Any]]:
    """What `kubectl get` prints; `-o wide` has the details. Nothing but these columns reads `phase`."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        _column("Phase", "string", ".status.phase", "Where the model is in its life"),
        _column("Champion", "string", ".status.champion.stack", "The stack that serves"),
        _column("Candidate", "string", ".status.candidate.step", "Where the work in flight is"),
        _column("Gate", "string", ".status.champion.gates[0].shown", "What the champion reached at its first gate"),
        _column("Age", "date", ".metadata.creationTimestamp", "Since the object was created"),
        _column("Ready", "string", f"{ready}.status", "Whether the champion serves", detail=True),
        _column("Data", "string", ".spec.data.revision", "The data revision that is asked for", detail=True),
        _column("Bundle", "string", ".status.champion.bundleId", "The encoder that serves", detail=True),
        _column("Index", "string", ".status.champion.generationId", "The index generation that serves", detail=True),
        _column("New", "string", ".status.candidate.gates[0].shown", "The candidate at its first gate", detail=True),
        _column("Message", "string", f"{ready}.message", "About the champion, in a sentence", detail=True),
    ]


def _column(name: str, kind: str, path: str, description: str, *, detail: bool = False) -> dict[str, Any]:
    priority = {"priority": 1} if detail else {}
    return {"name": name, "type": kind, "jsonPath": path, "description": description, **priority}

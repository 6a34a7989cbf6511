"""Versions are said once for people and once for Go; both say the same."""

from __future__ import annotations

import re

import pytest
from native_cluster.versions import ALL_MODULES, KUBERNETES, Module

FROM_GO = [module for module in ALL_MODULES if module.path]


def name(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", FROM_GO, ids=name)
def test_go_mod_requires_exactly_the_version_that_is_stated(module: Module) -> None:
    required = re.findall(
        rf"^\s*(?:require )?{re.escape(module.path)} (\S+)", (module.directory / "go.mod").read_text(), re.M
    )
    assert required == [module.version]


@pytest.mark.parametrize("module", FROM_GO, ids=name)
def test_go_sum_holds_the_hash_of_that_version(module: Module) -> None:
    assert f"{module.path} {module.version} h1:" in (module.directory / "go.sum").read_text()


def test_kubernetes_is_built_with_its_own_staging_modules() -> None:
    """A `replace` that was forgotten at an update would mix two versions of Kubernetes in one program."""
    kubernetes = next(module for module in ALL_MODULES if module.name == "kubernetes")
    text = (kubernetes.directory / "go.mod").read_text()
    replaced = re.findall(r"^replace (\S+) => (\S+) (\S+)$", text, re.M)
    assert len(replaced) > 25
    assert {(old == new, version) for old, new, version in replaced} == {(True, KUBERNETES.replace("v1.", "v0."))}


def test_no_two_modules_build_a_program_of_the_same_name() -> None:
    programs = [program for module in ALL_MODULES for program in module.programs]
    assert len(programs) == len(set(programs))

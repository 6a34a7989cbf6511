"""The Dockerfiles keep what they promise without being built: who runs, what is in, and which versions."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
COMPONENTS = {
    "core": "",
    "trainer": "retrieval-train",
    "indexer": "retrieval-index",
    "encoder_server": "retrieval-encoder-server",
    "operator": "retrieval-operator",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
component = pytest.mark.parametrize("folder", COMPONENTS)


class Instruction(NamedTuple):
    name: str
    value: str


def instructions(folder: str) -> list[Instruction]:
    """Of a Dockerfile, comments left out and continued lines joined."""
    lines = [line for line in (ROOT / folder / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def last_stage(folder: str) -> list[Instruction]:
    found = instructions(folder)
    start = max(i for i, instruction in enumerate(found) if instruction.name == "FROM")
    return found[start:]


def values(found: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in found if instruction.name == name]


def installations(folder: str) -> Iterator[list[str]]:
    """Every `pip install` and `pip wheel` as its words."""
    for command in values(instructions(folder), "RUN"):
        for part in command.split("&&"):
            words = [word for word in shlex.split(part) if not word.startswith("--mount")]
            if words[0].endswith("pip") and words[1] in ("install", "wheel"):
                yield words


def test_every_component_has_a_dockerfile_and_no_other_folder_has_one() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*Dockerfile*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {path for path in tracked.stdout.split() if not path.startswith("tests/")}
    assert ours == {f"{folder}/Dockerfile" for folder in COMPONENTS}


@component
def test_pods_run_as_a_numeric_user_that_is_not_root(folder: str) -> None:
    """The kubelet cannot tell whether a name is root: runAsNonRoot refuses an image without a number."""
    assert values(last_stage(folder), "USER")[-1] == "10001:10001"
    assert "--uid 10001" in (ROOT / "core/Dockerfile").read_text()


@component
def test_the_base_is_an_argument_and_names_no_registry(folder: str) -> None:
    found = instructions(folder)
    assert found[0].name == "ARG" and found[0].value.startswith("BASE_IMAGE=")
    default = found[0].value.removeprefix("BASE_IMAGE=")
    assert "/" not in default, "a host or a path: only a short name can mean what the builder's machine says"
    stages = {stage.split(" AS ")[1] for stage in values(found, "FROM") if " AS " in stage}
    assert {stage.split(" AS ")[0] for stage in values(found, "FROM")} == {"${BASE_IMAGE}"}
    copied = {
        word.removeprefix("--from=") for line in values(found, "COPY") for word in line.split() if "--from" in word
    }
    assert copied <= stages, "files come from the stages above, from no other image"


@component
def test_nothing_is_fetched_but_by_pip(folder: str) -> None:
    found = instructions(folder)
    assert values(found, "ADD") == []
    for command in values(found, "RUN"):
        assert not re.search(r"https?://|\b(curl|wget|git)\b", command), command


@component
def test_no_secret_can_end_up_in_a_layer(folder: str) -> None:
    """Arguments and variables stay readable in the image for everybody who has it."""
    found = instructions(folder)
    assert {argument.split("=")[0] for argument in values(found, "ARG")} == {"BASE_IMAGE", "VERSION", "REVISION"}
    for variable in values(found, "ENV"):
        assert not re.search(r"secret|token|password|index.?url", variable, re.IGNORECASE), variable


@component
def test_every_version_is_the_locked_one(folder: str) -> None:
    found = list(installations(folder))
    assert found
    for words in found:
        bound = "-c" in words and words[words.index("-c") + 1] in ("requirements.lock", "/requirements/constraints.txt")
        # The project itself has one version only; its libraries are there already.
        alone = "--no-deps" in words and "--find-links" not in words
        assert bound or alone, " ".join(words)
        assert "-e" not in words and "--editable" not in words


@component
def test_each_image_installs_its_own_extra(folder: str) -> None:
    command = " ".join(values(instructions(folder), "RUN"))
    assert re.findall(r"scripts/requirements\.py (\S+)", command) == [folder.replace("_", "-")]


@component
def test_images_say_what_they_are(folder: str) -> None:
    labels = " ".join(values(last_stage(folder), "LABEL"))
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'licenses="{PROJECT["license"]}"' in labels


@component
def test_the_entry_point_is_a_program_of_the_project(folder: str) -> None:
    program = COMPONENTS[folder]
    assert values(last_stage(folder), "ENTRYPOINT") == ([f'["{program}"]'] if program else [])
    assert not program or program in PROJECT["scripts"]


@component
def test_whatever_writes_to_its_home_writes_below_tmp(folder: str) -> None:
    """The root file system is read-only in a cluster, and /tmp the one emptyDir every pod has."""
    if folder in ("core", "operator"):  # the others inherit it from core
        variables = dict(word.split("=", 1) for line in values(last_stage(folder), "ENV") for word in shlex.split(line))
        assert variables["HOME"] == "/tmp"
        assert all(value.startswith("/tmp") for name, value in variables.items() if name.endswith(("_DIR", "_HOME")))
    assert values(last_stage(folder), "WORKDIR") in ([], ["/tmp"])


def test_the_build_context_is_only_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*", "everything is left out first"
    named = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert [path for path in named if not (ROOT / path).exists()] == []
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) <= set(named), "a package that is not in the context is not in the images"


def test_requirements_follow_the_references_between_extras() -> None:
    printed = requirements("trainer")
    extras = PROJECT["optional-dependencies"]
    of_trainer = {entry for entry in extras["trainer"] if not entry.startswith("retrieval-operator[")}
    assert printed == {*PROJECT["dependencies"], *extras["core"], *of_trainer}


def test_requirements_name_an_extra_that_does_not_exist() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/requirements.py", "learner"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "found 'learner', expected extras of" in done.stderr


def test_the_control_plane_has_none_of_the_large_libraries() -> None:
    """Not even by way of something else: this follows the requirements of what is installed here."""
    waiting = [Requirement(line) for line in requirements("operator")]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in seen:
            continue
        seen.add(name)
        for line in metadata.requires(name) or []:
            inner = Requirement(line)
            environments = [{"extra": extra} for extra in requirement.extras or ("",)]
            if inner.marker is None or any(inner.marker.evaluate(environment) for environment in environments):
                waiting.append(inner)
    assert {"kopf", "kubernetes", "aiohttp"} <= seen, "the walk goes on behind the first step"
    assert (
        seen & {"torch", "transformers", "mlflow", "pandas", "numpy", "pyarrow", "faiss-cpu", "kserve", "grpcio"}
        == set()
    )


def requirements(extra: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "scripts/requirements.py", extra], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[:-1])

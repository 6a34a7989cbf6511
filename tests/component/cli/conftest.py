"""The real command line in processes of its own, over the real local adapters and a real MLflow.

Only the heavy programs are stand-ins (stubs/): they keep the file contracts and take milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import retrieval_operator
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.objects import RetrievalModel

_numbers = itertools.count(1)
HERE = Path(__file__).parent
OPERATOR = Path(retrieval_operator.__file__).parent.parent
Local = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Place:
    """A directory of one test: its home, its storage, its datasets; and the name of its object, which MLflow shares.

    `mlflow` "": the home runs its own.
    """

    root: Path
    name: str
    mlflow: str = ""

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "PYTHONPATH": os.pathsep.join([str(HERE / "stubs"), str(OPERATOR)]),
            "RETRIEVAL_OPERATOR_HOME": str(self.home),
            "RETRIEVAL_OPERATOR_MLFLOW_URI": self.mlflow,
        }

    def model(self) -> RetrievalModel:
        """The object with what the controller wrote last."""
        found = asyncio.run(LocalModelStore(LocalHome(self.home)).get(f"default/{self.name}"))
        assert found is not None
        return found

    def dataset(self, name: str, quality: float, *, fail: str = "") -> Path:
        """A dataset whose models will be worth this much; `fail`: an exit code and a message instead."""
        directory = self.root / "data" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "quality").write_text(str(quality))
        (directory / "fail").unlink(missing_ok=True)
        if fail:
            (directory / "fail").write_text(fail)
        return directory

    def manifest(self, data: Path, revision: str, *, mode: str = "Automatic") -> str:
        document = {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": self.name},
            "spec": {
                "storage": {"uri": str(self.root / "storage")},
                "data": {"uri": str(data), "revision": revision},
                "model": {"base": "preset:tiny"},
                "index": {"encodeShards": 2},
                "promotion": {"mode": mode, "gates": [{"min": "0.30", "maxRegression": "0.02"}]},
            },
        }
        path = self.root / f"revision-{revision}.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)


@pytest.fixture(scope="session")
def shared_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow for the tests that are not about it: it takes longer to start than a life to live."""
    server = MlflowServer(LocalHome(tmp_path_factory.mktemp("mlflow")), Supervisor())

    async def start() -> None:
        await server.ensure()
        await server.wait_until_healthy()

    asyncio.run(start())
    yield server.uri()
    asyncio.run(server.stop())


@pytest.fixture
def place(tmp_path: Path, shared_mlflow: str) -> Place:
    return Place(tmp_path, name=f"feed-{next(_numbers)}", mlflow=shared_mlflow)


@pytest.fixture
def place_of_its_own(tmp_path: Path) -> Place:
    """With an MLflow of its own, as people have it."""
    return Place(tmp_path, name="feed")


@pytest.fixture
def local() -> Iterator[Local]:
    """Run `retrieval-operator local ...` in a place; in the end everything that was started there is stopped."""
    places: set[Place] = set()

    def run(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
        places.add(place)
        return subprocess.run(
            command(*arguments), check=False, capture_output=True, text=True, env=place.environment, timeout=240
        )

    yield run
    for place in list(places):
        assert run(place, "down", "--purge").returncode == 0
        assert not place.home.exists()


@pytest.fixture
def start_controller() -> Iterator[Callable[[Place], subprocess.Popen[bytes]]]:
    """Start `retrieval-operator local run`, its log in controller.txt."""
    started: list[subprocess.Popen[bytes]] = []

    def start(place: Place) -> subprocess.Popen[bytes]:
        with (place.root / "controller.txt").open("ab") as log:
            started.append(subprocess.Popen(command("run"), env=place.environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from retrieval_operator.cli import app; app()", "local", *arguments]

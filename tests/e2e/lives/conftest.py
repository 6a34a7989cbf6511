"""A cluster in which a life can be lived: our images, the operator by its chart, MLflow, and a namespace with storage.

Everything is installed as docs/operations.md says, from the manifests in examples/kubernetes; what differs is written
here: image names, and volumes, for the cluster of tests has no provisioner.

A cluster of one's own (RETRIEVAL_E2E_KUBECONFIG) has the training-operator with the template of
examples/kubernetes/pytorchjob-init-container.yaml, KServe, our images (RETRIEVAL_E2E_IMAGE_TAG), and runs on this
machine: volumes are directories here. What needs more of it is not run, and says so. It must have none of the
namespaces that the stories make (namespaces.py): they would be overwritten, and deleted at the end.

RETRIEVAL_E2E_KEEP=1 is for work on one story: the operator, MLflow and the namespace `feed` with its champion are left,
and taken as they are by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from lives import images
from lives.deployments import Release
from lives.durations import story_durations
from lives.namespaces import DOOMED, ENFORCED, FEED, MLFLOW, OPERATOR, PLACES, taken
from lives.nodes import elsewhere
from lives.place import (
    BUNDLE,
    DATASET,
    EXAMPLES,
    STORAGE,
    Kubectl,
    Object,
    Place,
    importing,
    is_true,
    manifest,
    own,
    provide_base,
    seconds,
)
from lives.shared_life import Approval, Takeover, approve, take_over
from lives.tracking import Tracking
from native_cluster.layout import Layout, NotRun, default_state

CHART = images.ROOT / "charts" / "retrieval-operator"
IMAGE_TAG = "RETRIEVAL_E2E_IMAGE_TAG"
WAIT_S = 300
KEEP = bool(os.environ.get("RETRIEVAL_E2E_KEEP"))
_KEPT_VOLUMES = Path("/var/tmp/retrieval-e2e-volumes")
# Of the shared life: a third of the default, so that nobody waits long to see clients follow the champion.
CONNECTION_AGE_S = 20
# The objects that story 7 deletes.
GOES, STAYS, LAST = "goes", "stays", "last"
# In this order each becomes True on the way to a first champion.
MILESTONES = ("TrainingSucceeded", "ModelRegistered", "GatesPassed", "IndexReady", "EncoderReady", "Promoted", "Ready")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories are told in their order and without a break, for one life is shared by several; `full` comes last."""
    here = Path(__file__).parent
    told = [item for item in items if item.path.is_relative_to(here)]
    told.sort(key=lambda item: (item.path.parent, item.path.name, _line(item)))
    items[:] = [*(item for item in items if item not in told), *told]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Failures are told at once: a run that is out of time does not live to print its summary."""
    if report.failed:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long each story took: what `--durations` tells of single tests."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    tests = [report for report in reports if isinstance(report, pytest.TestReport)]
    if lines := story_durations(tests):
        terminalreporter.section("stories (what several share is counted for the first that needs it)")
        terminalreporter.write("".join(f"{line}\n" for line in lines))


def _line(item: pytest.Item) -> int:
    return item.location[1] or 0


@pytest.fixture(scope="session")
def kubectl(cluster: Any) -> Kubectl:
    """Runs kubectl with a document, or several, on its input where there are some; a failure ends the test."""

    def run(*arguments: str, documents: list[Object] | None = None, timeout_s: float = WAIT_S) -> str:
        result = subprocess.run(
            ["kubectl", *arguments],
            input=yaml.safe_dump_all(documents) if documents else "",
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}{result.stdout}"
        return result.stdout

    if cluster.binaries is None and not KEEP:
        existing = run("get", "namespaces", "--output=jsonpath={.items[*].metadata.name}").split()
        if why := taken(existing):
            pytest.fail(why, pytrace=False)
    return run


@pytest.fixture(scope="session")
def tag(cluster: Any) -> str:
    """Of our images, which the cluster has; the first time this builds them. RETRIEVAL_E2E_IMAGE_TAG: it has these."""
    if named := os.environ.get(IMAGE_TAG):
        return named
    if cluster.binaries is None:
        pytest.skip(f"not run: {IMAGE_TAG} does not say which of its images the named cluster is to use")
    if lacking := images.missing():
        pytest.skip(f"not run: {lacking}")
    try:
        return images.provide(Layout.existing(default_state()))
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")


@pytest.fixture(scope="session")
def volume(cluster: Any, kubectl: Kubectl) -> Iterator[Callable[[str, str], Path]]:
    """Makes a volume for a claim that is still to come, as an administrator would: writable for our user."""
    if cluster.binaries is None and (why := elsewhere(json.loads(kubectl("get", "nodes", "--output=json"))["items"])):
        pytest.skip(f"not run: {why}")
    home = _KEPT_VOLUMES if KEEP else Path(tempfile.mkdtemp(prefix="retrieval-volumes-", dir="/var/tmp"))
    home.mkdir(exist_ok=True)
    home.chmod(0o755)
    made: list[tuple[str, str]] = []

    def make(namespace: str, claim: str) -> Path:
        path = home / namespace / claim
        if not path.exists():
            path.mkdir(parents=True)
            own(path)
            made.append((namespace, claim))
            kubectl("apply", "--filename=-", documents=[_persistent_volume(namespace, claim, path)])
        return path

    yield make
    if not KEEP:
        for namespace, _claim in made:
            end(kubectl, namespace)
        try:
            # They go all at once, and nothing may write here any more.
            for namespace, _claim in made:
                wait = ("wait", "--for=delete", f"namespace/{namespace}", f"--timeout={WAIT_S}s")
                kubectl(*wait, timeout_s=WAIT_S + 30)
        finally:
            for namespace, claim in made:
                kubectl("delete", "persistentvolume", _volume_name(namespace, claim), "--wait=false")
            shutil.rmtree(home)


def _volume_name(namespace: str, claim: str) -> str:
    return f"{namespace}-{claim}"


def _persistent_volume(namespace: str, claim: str, path: Path) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _volume_name(namespace, claim)},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(path), "type": "Directory"},
        },
    }


@pytest.fixture(scope="session")
def examples(kubectl: Kubectl, tag: str, volume: Any) -> Path:
    """Those of a trial's tracking server and storage are applied, and on their way; the path behind the claim."""
    volume(MLFLOW, "mlflow")
    path: Path = volume(FEED, "retrieval")
    for name in ("mlflow.yaml", "storage.yaml"):
        kubectl("apply", "--filename=-", documents=example(name, tag))
    return path


@pytest.fixture(scope="session")
def mlflow(kubectl: Kubectl, examples: Path) -> Iterator[str]:
    """The address of the tracking server of examples/kubernetes/mlflow.yaml."""
    kubectl("--namespace", MLFLOW, "rollout", "status", "deployment/mlflow", f"--timeout={WAIT_S}s")
    yield f"http://mlflow.{MLFLOW}:5000"
    end(kubectl, MLFLOW)


@pytest.fixture(scope="session")
def tracking(kubectl: Kubectl, mlflow: str) -> Tracking:
    return Tracking(kubectl)


@pytest.fixture(scope="session")
def release(cluster: Any, kubectl: Kubectl, helm: Any, tag: str, mlflow: str) -> Release:
    """The chart with the images of this working tree and the tracking server; as yet nothing is installed."""
    settings = {
        "images.prefix": images.PREFIX,
        "images.tag": tag,
        "mlflow.connections.default.uri": mlflow,
    }
    return Release(kubectl, helm, cluster.environment, [f"--set={name}={value}" for name, value in settings.items()])


@pytest.fixture(scope="session")
def operator(kubectl: Kubectl, release: Release) -> Iterator[float]:
    """The chart, installed in a namespace of its own and uninstalled at the end. Since when, in seconds since 1970.

    A story takes it away and installs it anew.
    """
    if not (KEEP and release.exists()):
        release.install(CHART)
    release.wait()
    yield seconds(release.deployment()["metadata"]["creationTimestamp"])
    if KEEP:
        return
    release.uninstall()
    end(kubectl, OPERATOR)


@pytest.fixture(scope="session")
def audit_log(cluster: Any) -> Path:
    """What the API server was asked, and by whom: see audit.py."""
    if cluster.binaries is None:
        pytest.skip("not run: where the API server of the named cluster writes its audit log is not known")
    return Layout.existing(default_state()).logs / "audit.log"


@pytest.fixture(scope="session")
def feed(kubectl: Kubectl, operator: float, examples: Path) -> Iterator[Place]:
    """The namespace of examples/kubernetes/storage.yaml, in which PodSecurity "restricted" is enforced.

    Its dataset is the one that the example's Job writes. What happened there is kept in the cluster's logs.
    """
    place = Place(FEED, examples, kubectl)
    place.run("wait", "--for=condition=Complete", "job/generate-day-28", f"--timeout={WAIT_S}s")
    provide_base(place.path, place.path / "data" / DATASET)
    yield place
    keep_evidence(kubectl, FEED)
    end(kubectl, FEED)


@pytest.fixture(scope="session")
def new_place(kubectl: Kubectl, feed: Place, tag: str, volume: Any) -> Iterator[Callable[[str], Place]]:
    """Makes another namespace like that of the example, with the same dataset and base. It goes with the tests."""
    made: list[Place] = []

    def make(namespace: str) -> Place:
        assert namespace in PLACES, f"namespaces.py does not have {namespace}"
        place = Place(namespace, volume(namespace, "retrieval"), kubectl)
        made.append(place)
        for folder in ("data", "base"):
            shutil.copytree(feed.path / folder, place.path / folder)
        own(place.path)
        documents = [one for one in example("storage.yaml", tag) if one["kind"] != "Job"]
        for document in documents:
            document["metadata"] |= {"name": namespace} if document["kind"] == "Namespace" else {"namespace": namespace}
        kubectl("apply", "--filename=-", documents=documents)
        labels = json.loads(kubectl("get", "namespace", namespace, "--output=json"))["metadata"]["labels"]
        assert labels.get(ENFORCED) == "restricted", f"{namespace}: {labels}"
        return place

    yield make
    for place in made:
        keep_evidence(kubectl, place.namespace)
        end(kubectl, place.namespace)
        if KEEP:  # only what is installed and `feed` are kept
            kubectl("delete", "namespace", place.namespace, "--ignore-not-found")
            kubectl("delete", "persistentvolume", _volume_name(place.namespace, "retrieval"))
            shutil.rmtree(place.path)


@pytest.fixture(scope="session")
def shared_life(feed: Place) -> Place:
    """The namespace once its object `feed` has its first champion, trained by a master and a worker."""
    if KEEP and feed.run("get", "retrievalmodels", "--output=name"):
        return feed
    feed.apply(manifest(nodes=2, index={"encodeShards": 2}, serving={"connectionAgeSeconds": CONNECTION_AGE_S}))
    for milestone in MILESTONES:
        feed.until("feed", lambda found, of=milestone: is_true(found, of), milestone)
    return feed


@pytest.fixture(scope="session")
def clients_image(tag: str) -> str:
    """Of clients.asking()."""
    return f"{images.PREFIX}{images.COMPONENTS['encoder_server']}:{tag}"


@pytest.fixture(scope="session")
def takeover(shared_life: Place, clients_image: str, doomed: Place) -> Takeover:
    """`doomed` only begins here: two cores have room for it, and story 7 need not wait for it."""
    return take_over(shared_life, clients_image)


@pytest.fixture(scope="session")
def approval(shared_life: Place, takeover: Takeover, tracking: Tracking) -> Approval:
    return approve(shared_life, tracking)


@pytest.fixture(scope="session")
def new_import(new_place: Callable[[str], Place], shared_life: Place) -> Callable[[str], Place]:
    """Makes another namespace that has the first bundle of `feed`, for place.importing(): that of the same dataset."""

    def make(namespace: str) -> Place:
        place = new_place(namespace)
        bundles = shared_life.path.glob("feed/feed/revisions/*/bundle/bundle.json")
        first = min(bundles, key=lambda path: path.stat().st_mtime).parent
        target = place.path / Path(BUNDLE).relative_to(STORAGE)
        shutil.copytree(first, target)
        own(target.parent)
        return place

    return make


@pytest.fixture(scope="session")
def doomed(new_import: Callable[[str], Place]) -> Place:
    """A namespace with three objects, as yet on their way: what story 7 deletes."""
    place = new_import(DOOMED)
    place.apply(importing(GOES, deletionPolicy="Delete"), importing(STAYS), importing(LAST, deletionPolicy="Delete"))
    return place


def example(name: str, tag: str) -> list[Object]:
    """The documents of a manifest in examples/kubernetes, with the images of this working tree."""
    text = (EXAMPLES / name).read_text()
    for image in images.COMPONENTS.values():
        text = text.replace(f"image: {image}:0.1.0", f"image: {images.PREFIX}{image}:{tag}")
    return list(yaml.safe_load_all(text))


def keep_evidence(kubectl: Kubectl, namespace: str) -> None:
    """The objects of a namespace, their events and every log that the cluster still has; the operator's log, too."""
    directory = Layout.existing(default_state()).logs / "lives" / namespace
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    kinds = "retrievalmodels,jobs,pytorchjobs,inferenceservices,services,pods"
    looks = {
        "objects.yaml": ("get", kinds, "--output=yaml"),
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
    }
    for name, arguments in looks.items():
        with suppress(AssertionError):
            (directory / name).write_text(kubectl("--namespace", namespace, *arguments))
    for home in (namespace, OPERATOR, MLFLOW):
        for pod in kubectl("--namespace", home, "get", "pods", "--output=name").split():
            with suppress(AssertionError):  # it went meanwhile
                log = kubectl("--namespace", home, "logs", pod, "--all-containers", "--ignore-errors")
                (directory / f"{home}-{pod.removeprefix('pod/')}.log").write_text(log)


def end(kubectl: Kubectl, namespace: str) -> None:
    """A namespace begins to go; what its volumes need is waited for by `volume`."""
    if not KEEP:
        kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")

"""`python -m native_cluster`: up, down, status, restart, binaries, load-image.

Exit codes: 0 done, 1 failed (the log's last lines are shown), 2 wrong usage, 3 not run: this machine cannot, and the
message says why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from native_cluster import images, prerequisites
from native_cluster.binaries import Binaries
from native_cluster.cluster import Cluster
from native_cluster.controllers import Sources
from native_cluster.layout import DEFAULT_NETWORK, ClusterError, Layout, NotRun, default_cache, default_state
from native_cluster.versions import KSERVE

NOT_RUN = 3
_LOG_LINES = 25

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
State = Annotated[Path, typer.Option(help="Where the cluster keeps what it has.", default_factory=default_state)]
Network = Annotated[int, typer.Option(help="n: the cluster's addresses are 10.n.0.0/16.", min=1, max=255)]
Cache = Annotated[Path, typer.Option(help="Where built programs are kept.", default_factory=default_cache)]


@app.command()
def up(
    state: State,
    cache: Cache,
    network: Network = DEFAULT_NETWORK,
    controllers: Annotated[bool, typer.Option(help="The training operator and KServe, too.")] = True,
    prepare: Annotated[
        bool, typer.Option(help="Build and install what is missing; otherwise its lack means: not run.")
    ] = True,
) -> None:
    """Start the cluster; says so when it runs already. Its KUBECONFIG is printed last."""
    with _told_to_people():
        began = time.monotonic()
        layout, binaries = Layout(state.absolute(), network), Binaries(cache.absolute())
        layout.check()
        prerequisites.check_machine(layout)
        if prepare:
            prerequisites.install_packages(typer.echo)
        else:
            prerequisites.check_prepared(binaries)
        binaries.build(say=typer.echo, check=prerequisites.check_build)
        sources = Sources(
            training_operator=binaries.file("training-operator", "manifests"),
            kserve=binaries.file("kserve", f"install/{KSERVE}/kserve.yaml"),
        )
        Cluster(layout, binaries.directory, typer.echo).up(sources if controllers else None)
        typer.echo(f"up after {time.monotonic() - began:.0f} s; logs: {layout.logs}")
        typer.echo(f"export KUBECONFIG={layout.kubeconfig} PATH={binaries.directory}:$PATH")


@app.command()
def down(state: State, cache: Cache) -> None:
    """Stop the cluster and remove all it made but its logs; also after a crash."""
    with _told_to_people():
        began = time.monotonic()
        layout = Layout.existing(state.absolute())
        Cluster(layout, Binaries(cache.absolute()).directory, typer.echo).down()
        typer.echo(f"down after {time.monotonic() - began:.0f} s; logs, if any: {layout.logs}")


@app.command()
def status(state: State, cache: Cache) -> None:
    """Say what runs; exit code 1 when the cluster is not up."""
    with _told_to_people():
        layout = Layout.existing(state.absolute())
        found = Cluster(layout, Binaries(cache.absolute()).directory, typer.echo).status()
        for name, code in found.programs.items():
            typer.echo(f"  {name}: {'runs' if code is None else f'ended with {code}; see {layout.log(name)}'}")
        state_text = "up" if found.running else "half started, or broken" if found.programs else "down"
        typer.echo(f"the cluster is {state_text}; controllers: {'installed' if found.controllers else 'no'}")
        if found.running:
            typer.echo(f"export KUBECONFIG={layout.kubeconfig}")
    if not found.running:
        raise typer.Exit(1)


@app.command()
def restart(program: str, state: State, cache: Cache) -> None:
    """Stop one program (kube-apiserver, kubelet, ...) and start it again."""
    with _told_to_people():
        Cluster(Layout.existing(state.absolute()), Binaries(cache.absolute()).directory, typer.echo).restart(program)


@app.command()
def binaries(
    cache: Cache,
    drop_go_caches: Annotated[
        bool, typer.Option(help="Use Go caches of our own (12 GB), and remove them afterwards.")
    ] = False,
) -> None:
    """Build the programs that are missing (half an hour on two cores when all are); print where they are."""
    with _told_to_people():
        kept = Binaries(cache.absolute())
        built = kept.build(say=_to_stderr, check=prerequisites.check_build, drop_go_caches=drop_go_caches)
        typer.echo(str(built))


@app.command()
def load_image(archive: Path, state: State) -> None:
    """Give the node an image, from an archive of `buildah push ... docker-archive:` or `docker save`."""
    with _told_to_people():
        images.load(Layout.existing(state.absolute()), archive.absolute())


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _told_to_people() -> Iterator[None]:
    try:
        yield
    except NotRun as reason:
        _to_stderr(f"not run: {reason}")
        raise typer.Exit(NOT_RUN) from None
    except ClusterError as error:
        _to_stderr(f"failed: {error}")
        if error.log:
            _show_end(error.log)
        raise typer.Exit(1) from None


def _show_end(log: Path) -> None:
    _to_stderr(f"the last lines of {log}:")
    files = sorted(log.rglob("*.log")) if log.is_dir() else [log] if log.exists() else []
    for path in files:
        for line in path.read_text(errors="replace").splitlines()[-_LOG_LINES:]:
            _to_stderr(f"  {line}")

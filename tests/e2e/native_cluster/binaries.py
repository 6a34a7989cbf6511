"""The cluster's programs, built from Go modules by name and kept outside the repository.

CACHE/modules/<module>-<version>-<key>/   what one module gives; `complete` is written last
CACHE/<key>/bin/                          all of them together (hard links)

A key is the hash of what decides the bytes: go.mod, go.sum, our few lines of Go, flags, platform. So a new KServe does
not rebuild Kubernetes, and two checkouts share what they agree on. A build that was cut leaves whole programs only, and
the next one goes on behind them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from native_cluster.layout import ClusterError, NotRun, default_cache
from native_cluster.node_client import locked
from native_cluster.versions import ALL_MODULES, Module

# The longest build seen is kube-apiserver's: 5 min with nothing cached, on two busy cores.
_BUILD_TIMEOUT_S = 3600
CHOSEN_DIRECTORY = "RETRIEVAL_CLUSTER_BIN"
_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false")


class Binaries:
    """The cache below one directory; nothing is built until `build` is called."""

    def __init__(self, cache: Path, modules: tuple[Module, ...] = ALL_MODULES) -> None:
        self._cache = cache
        self._modules = modules

    @property
    def directory(self) -> Path:
        """Where all programs are once they are built."""
        return self._cache / _key("".join(module_key(module) for module in self._modules)) / "bin"

    def module_directory(self, module: Module) -> Path:
        return self._cache / "modules" / "-".join(filter(None, [module.name, module.version, module_key(module)]))

    def missing(self) -> list[Module]:
        return [module for module in self._modules if not (self.module_directory(module) / "complete").exists()]

    def file(self, module_name: str, name: str) -> Path:
        """Something of a module's own source that was kept (Module.files)."""
        module = next(module for module in self._modules if module.name == module_name)
        return self.module_directory(module) / "files" / name

    def build(
        self,
        *,
        say: Callable[[str], None],
        check: Callable[[Binaries], None] = lambda _: None,
        drop_go_caches: bool = False,
    ) -> Path:
        """Build what is missing; returns `directory`. Several callers wait for one build.

        `check` raises NotRun for what cannot be built here. It is asked once no other build takes space any more.

        `drop_go_caches`: download and compile in directories of our own (about 12 GB) and remove them once all is
        built. Go's caches of other work are neither used nor touched.
        """
        with locked(self._cache / "lock", timeout_s=_BUILD_TIMEOUT_S, busy=f"another build works on {self._cache}"):
            check(self)
            missing = self.missing()
            own_caches = self._cache / "go" if drop_go_caches and missing else None
            environment = _environment(own_caches)
            for number, module in enumerate(missing, 1):
                say(f"{module.name} {module.version} ({number} of {len(missing)} modules)")
                self._build_module(module, environment, say)
            if own_caches:
                _go(["clean", "-modcache"], own_caches, environment)
                shutil.rmtree(own_caches)
            self._link_all()
        return self.directory

    def _build_module(self, module: Module, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        target = self.module_directory(module)
        target.mkdir(parents=True, exist_ok=True)
        for name, package in module.programs.items():
            if (target / name).exists():
                continue
            began = time.monotonic()
            say(f"  building {name} ...")
            self._build_program(module, package, target / name, environment)
            say(f"  {name}: {time.monotonic() - began:.0f} s, {(target / name).stat().st_size / 1e6:.0f} MB")
        if module.files:
            source = Path(_go(["list", "-m", "-f", "{{.Dir}}", module.path], module.directory, environment).strip())
            for name in module.files:
                _copy(source / name, target / "files" / name)
        (target / "complete").touch()

    def _build_program(self, module: Module, package: str, target: Path, environment: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as workplace:
            built = Path(workplace) / target.name
            flags = [*_FLAGS, f"-ldflags={module.ldflags}", *([f"-tags={module.tags}"] if module.tags else [])]
            _go(["build", *flags, "-o", str(built), package], module.directory, environment)
            built.rename(target)

    def _link_all(self) -> None:
        if self.directory.exists():
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory.parent, prefix=".linking-") as workplace:
            together = Path(workplace) / "bin"
            together.mkdir()
            for module in self._modules:
                for name in module.programs:
                    os.link(self.module_directory(module) / name, together / name)
            together.rename(self.directory)


def ready_programs(*names: str) -> Path:
    """The directory with these programs: what RETRIEVAL_CLUSTER_BIN names, else the cache. NotRun: one is not there."""
    chosen = os.environ.get(CHOSEN_DIRECTORY)
    directory = Path(chosen) if chosen else Binaries(default_cache()).directory
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        remedy = (
            f"{CHOSEN_DIRECTORY} names it" if chosen else f"`make cluster-up` builds them; or set {CHOSEN_DIRECTORY}"
        )
        raise NotRun(f"{directory} has no {' and no '.join(missing)} ({remedy})")
    return directory


def module_key(module: Module) -> str:
    sources = sorted(path for path in module.directory.iterdir() if path.name in ("go.mod", "go.sum", "main.go"))
    texts = [f"{path.name}\n{path.read_text()}" for path in sources]
    parts = [*texts, module.tags, module.ldflags, *_FLAGS, platform.machine(), *module.programs, *module.files]
    return _key("\0".join(parts))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _environment(own_caches: Path | None) -> dict[str, str]:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    if own_caches:
        for name, folder in (("GOMODCACHE", "modules"), ("GOCACHE", "build")):
            environment[name] = str(own_caches / folder)
            (own_caches / folder).mkdir(parents=True, exist_ok=True)
    return environment


def _go(arguments: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    """Run go at low priority; its standard output. Its complaints are for the person who waits."""
    command = ["nice", "-n", "15", "go", *arguments]
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`go {' '.join(arguments)}` took more than {_BUILD_TIMEOUT_S} s") from error
    if result.returncode:
        complaint = "\n".join(result.stderr.splitlines()[-20:])
        raise ClusterError(f"`go {' '.join(arguments)}` failed in {directory}:\n{complaint}")
    return result.stdout


def _copy(source: Path, target: Path) -> None:
    """The module cache is read-only; copies of it are not."""
    if source.is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(target)
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
            directory.chmod(0o755)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

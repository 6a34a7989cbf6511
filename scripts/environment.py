"""Make (or reuse) the environment that every `make` target runs in.

Two layers, because torch from PyPI brings its CUDA libraries and a full environment takes several gigabytes:

1. The dependencies: one virtual environment outside the clone, under
   `${RETRIEVAL_ENV_CACHE:-${XDG_CACHE_HOME:-~/.cache}/retrieval-operator/environments}/<key>`.
   The key hashes the Python version, the dependency lists of pyproject.toml and requirements.lock, so a second
   clone reuses it and a changed dependency builds a new one.
2. The clone's own `.venv`: this project, editable, on top of layer 1.

Only the standard library is used: this runs before anything is installed. Running it again when all is in place
takes a few milliseconds and prints nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 this file is what tells people so
    sys.exit(f"environment: Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")

import tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
THIN = ROOT / ".venv"
FREE_SPACE_NEEDED_GB = 9  # measured: the environment itself 6.7 GB, and pip unpacks beside it


def dependency_lists() -> dict[str, object]:
    """The parts of pyproject.toml that decide what is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"base": project["dependencies"], "extras": project["optional-dependencies"]}


def third_party(lists: dict[str, object]) -> list[str]:
    """Flatten the lists, without the references of this project to its own extras."""
    extras = lists["extras"]
    assert isinstance(extras, dict) and isinstance(lists["base"], list)
    flat = {*lists["base"], *(entry for extra in extras.values() for entry in extra)}
    return sorted(entry for entry in flat if not entry.startswith("retrieval-operator["))


def environment_key(lists: dict[str, object]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(lists, sort_keys=True).encode())
    digest.update(LOCK.read_bytes())
    digest.update(sys.version.encode())
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{digest.hexdigest()[:12]}"


def cache_directory() -> Path:
    explicit = os.environ.get("RETRIEVAL_ENV_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "retrieval-operator" / "environments"


def refuse_full_disk(directory: Path) -> None:
    stats = os.statvfs(directory)
    free_gb = stats.f_bavail * stats.f_frsize / 1e9
    if free_gb < FREE_SPACE_NEEDED_GB:
        sys.exit(
            f"environment: {free_gb:.1f} GB free under {directory}, about {FREE_SPACE_NEEDED_GB} GB needed. "
            "Free some space, or set RETRIEVAL_ENV_CACHE to a directory on a larger disk."
        )


def build_dependencies(target: Path, requirements: list[str]) -> None:
    refuse_full_disk(target.parent)
    started = time.monotonic()
    print(f"Installing the dependencies into {target} (once; several minutes) ...", flush=True)
    venv.EnvBuilder(with_pip=True, clear=True).create(target)
    pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    subprocess.run([*pip, "--progress-bar=off", "--quiet", "-c", str(LOCK), *requirements], check=True)
    print(f"Dependencies installed in {time.monotonic() - started:.0f} s.", flush=True)


def dependencies() -> Path:
    """The complete dependency environment for this clone, built at most once however many processes ask."""
    lists = dependency_lists()
    target = cache_directory() / environment_key(lists)
    complete = target / ".complete"
    if complete.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            build_dependencies(target, third_party(lists))
            complete.touch()
    return target


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def install_project(deps: Path) -> None:
    """`.venv` sees the dependencies through a .pth file and the project through an editable install."""
    venv.EnvBuilder(with_pip=False, clear=True).create(THIN)
    pth = site_packages(THIN) / "_dependencies.pth"
    pth.write_text(f"import site; site.addsitedir({str(site_packages(deps))!r})\n")
    # `python -m ruff` looks for its binary beside the interpreter.
    (THIN / "bin" / "ruff").symlink_to(deps / "bin" / "ruff")
    pip = [str(THIN / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--editable", str(ROOT)], check=True)


def main() -> None:
    deps = dependencies()
    stamp = THIN / ".installed-for"
    wanted = f"{deps}\n{hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()}\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        install_project(deps)
        stamp.write_text(wanted)


if __name__ == "__main__":
    main()

"""Which module each program is, what it needs, and the environment it gets on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from retrieval_operator.api.pod import Pod
from retrieval_operator.ports import Rejected


@dataclass(frozen=True, kw_only=True)
class Program:
    """`target` is what follows the Python interpreter: `-m module`, or a script's path.

    `requires` are top-level packages it cannot start without; `extra` is the part of our distribution that brings them.
    """

    target: tuple[str, ...]
    requires: tuple[str, ...] = ()
    extra: str = ""

    def missing(self) -> list[str]:
        """The packages that are not installed. Nothing is imported: find_spec of a top-level name only looks."""
        return [package for package in self.requires if find_spec(package) is None]


def _module(name: str, *requires: str, extra: str) -> Program:
    return Program(target=("-m", name), requires=(name.partition(".")[0], *requires), extra=extra)


ProgramTable = Mapping[str, Program]
PROGRAMS: ProgramTable = {
    "retrieval-train": _module("retrieval_trainer.cli", "torch", "transformers", "peft", extra="trainer"),
    "retrieval-index": _module("retrieval_indexer.cli", "torch", "transformers", "faiss", extra="indexer"),
    "retrieval-evaluate": _module("retrieval_indexer.evaluate_cli", "torch", "transformers", "faiss", extra="indexer"),
    "retrieval-data": _module("retrieval_core.data_cli", "pyarrow", extra="core"),
    "retrieval-encoder-server": _module(
        "retrieval_encoder_server.cli", "torch", "transformers", "faiss", "kserve", extra="encoder-server"
    ),
}

# What a child inherits. Everything else (tokens, passwords, the shell's own state) stays here. The cloud variables
# name files and profiles, never secrets themselves.
_INHERITED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR PYTHONPATH VIRTUAL_ENV LD_LIBRARY_PATH XDG_CACHE_HOME
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
    HF_HOME HF_HUB_OFFLINE TRANSFORMERS_OFFLINE CUDA_VISIBLE_DEVICES MPLBACKEND
    AWS_PROFILE AWS_REGION AWS_DEFAULT_REGION AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE
    GOOGLE_APPLICATION_CREDENTIALS RETRIEVAL_LOG_FORMAT
    """.split()  # noqa: SIM905 (a list of words reads better than forty quoted strings)
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command_line(table: ProgramTable, program: str, arguments: Iterable[str], processes: int = 1) -> list[str]:
    """How to start a program; more than one process goes through torchrun. Raises Rejected for an unknown program."""
    if program not in table:
        raise Rejected(f"found program {program!r}, expected one of {', '.join(sorted(table))}")
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    return [sys.executable, *launcher, *table[program].target, *arguments]


def clean_environment(pod: Pod, *, threads: int | None = None) -> dict[str, str]:
    """The allow-listed part of our environment, locale variables included, and the pod's literal variables.

    `threads` bounds the math libraries' threads per process; None leaves them alone.
    """
    environment = {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith("LC_")}
    for name in ("NO_PROXY", "no_proxy"):  # MLflow and the servers are on this machine: no proxy leads here
        environment[name] = ",".join(filter(None, (environment.get(name), *_LOOPBACK)))
    environment["PYTHONUNBUFFERED"] = "1"  # a log that ends where the program ended
    # Threads that spin while they wait take the cores from the servers: with 4 busy processes on 2 cores a training
    # step took 2.7 s so, and 0.6 s with threads that sleep.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment | {variable.name: variable.value for variable in pod.env if variable.value is not None}


def threads_per_process(processes: int) -> int:
    """The machine's processors shared among the processes of one workload."""
    return max(1, (os.cpu_count() or 1) // processes)

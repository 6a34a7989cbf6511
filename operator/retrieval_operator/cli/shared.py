"""What every local command shares: its options, the home it works on, and how errors become exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from retrieval_operator.adapters.local import rules
from retrieval_operator.api.objects import InvalidManifest, RetrievalModel
from retrieval_operator.cli.asking import NothingToAsk
from retrieval_operator.cli.exits import Exit, leave
from retrieval_operator.cli.output import Format
from retrieval_operator.cli.words import duration
from retrieval_operator.instance import HeldElsewhere
from retrieval_operator.local_mode import LocalMode
from retrieval_operator.ports import Gone, PortError, Rejected
from retrieval_operator.settings import InvalidSettings, load_settings

P = ParamSpec("P")
R = TypeVar("R")

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="RETRIEVAL_OPERATOR_HOME",
        help="Directory that holds everything of local mode.",
        show_default="$XDG_DATA_HOME/retrieval-operator",
    ),
]
OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]
NameArgument = Annotated[str, typer.Argument(help="NAME or NAMESPACE/NAME of the object.", show_default=False)]
NamesArgument = Annotated[
    list[str] | None, typer.Argument(help="NAME or NAMESPACE/NAME; default: every object.", show_default=False)
]


class NotFound(Exception):
    """There is no such thing; the message says what there is."""


def open_home(home: Path | None) -> LocalMode:
    """Local mode as the environment configures it, in this home."""
    settings = load_settings()
    return LocalMode(settings if home is None else settings.model_copy(update={"home": home}))


def key_of(name: str) -> str:
    """`feed` is `default/feed`."""
    return name if "/" in name else f"default/{name}"


async def find(mode: LocalMode, name: str) -> RetrievalModel:
    """The object. Raises NotFound, naming those there are."""
    keys = await mode.models.keys()
    model = await mode.models.get(key_of(name)) if key_of(name) in keys else None
    if model is None:
        raise NotFound(f"{key_of(name)} does not exist in {mode.home.root}; there is: {', '.join(keys) or 'nothing'}")
    return model


async def find_all(mode: LocalMode, names: Sequence[str] | None) -> list[RetrievalModel]:
    """The named objects, or all. Raises NotFound when one is missing, or when there is none at all."""
    chosen = names or await mode.models.keys()
    if not chosen:
        raise NotFound(f"there is no object in {mode.home.root}; retrieval-operator local apply -f FILE makes one")
    return [await find(mode, name) for name in chosen]


async def check_manifests(mode: LocalMode, manifests: Sequence[RetrievalModel]) -> dict[str, RetrievalModel]:
    """The objects as they are, by key, if all manifests could be applied. Raises InvalidManifest or Rejected."""
    keys = [manifest.key for manifest in manifests]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InvalidManifest("manifests", [f"{key}: found more than once, expected one document" for key in twice])
    found = [await mode.models.get(key) for key in await mode.models.keys()]
    stored = {model.key: model for model in found if model is not None}
    after = stored | {manifest.key: manifest for manifest in manifests}
    for manifest in manifests:
        others = [model for key, model in after.items() if key != manifest.key]
        rules.check(manifest, stored.get(manifest.key), others)
    return stored


def timeout_of(text: str) -> float:
    """Seconds of a --timeout. A usage error when it is none."""
    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None


def told(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors a person can act on into a sentence and an exit code; defects keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (InvalidManifest, InvalidSettings, Rejected) as error:
            leave(Exit.USAGE, str(error))
        except (NotFound, NothingToAsk, Gone) as error:
            leave(Exit.NOT_FOUND, str(error))
        except (HeldElsewhere, PortError) as error:
            leave(Exit.NOT_REACHED, str(error))

    return wrapped

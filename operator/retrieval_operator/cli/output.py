"""How results reach people and programs: tables on a terminal, plain columns in a pipe, JSON and YAML on request."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from io import StringIO
from typing import Any

import typer
import yaml
from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from retrieval_operator.api.text import printable

# Wide enough that nothing is ever wrapped or cut in a pipe: grep and diff work on whole lines.
_PIPE_WIDTH = 4000


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


# Colours only underline what the words say already.
STYLES = {
    **dict.fromkeys(("True", "Passed", "Promoted", "Approved", "Succeeded", "Normal", "Serving"), "green"),
    **dict.fromkeys(("False", "Failed", "Rejected", "RolledBack", "Stalled"), "red"),
    **dict.fromkeys(("Unknown", "Inconclusive", "Warning", "Superseded"), "yellow"),
}


def word(value: str) -> Text:
    """A word of the vocabulary in its colour."""
    return Text(value, style=STYLES.get(value, ""))


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    numeric: Collection[str] = (),
    wrapped: Collection[str] | None = None,
) -> Table:
    """Columns under headers, the `numeric` ones flush right.

    Where a terminal is too narrow only the `wrapped` columns give way, by default the last one.
    """
    built = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    giving_way = {headers[-1]} if wrapped is None else wrapped
    for header in headers:
        justify: JustifyMethod = "right" if header in numeric else "left"
        built.add_column(header, justify=justify, no_wrap=header not in giving_way, overflow="fold")
    for row in rows:
        # As Text: a segment or a message with brackets is no markup.
        built.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return built


def plain(built: Table) -> Table:
    """The same table without lines, for a pipe."""
    built.box = None
    built.padding = (0, 2, 0, 0)
    return built


def heading(title: str, note: str = "") -> Text:
    return Text.assemble(("\n" + title, "bold"), (f"  {note}" if note else "", "dim"))


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """`Name  value` lines; pairs without a value are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            grid.add_row(name, value)
    return grid


class Harmless:
    """What is shown in it can be written by anybody: only our own styles reach the terminal as control sequences."""

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._part, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def show(parts: Iterable[RenderableType], console: Console | None = None) -> None:
    """Print to the terminal; in a pipe, without colours, lines or wrapping."""
    console = console or Console()
    if console.is_terminal:
        for part in parts:
            console.print(Harmless(part))
        return
    typer.echo(as_text(parts), nl=False)


def as_text(parts: Iterable[RenderableType]) -> str:
    """The plain form, one line per row and nothing behind the last word of a line."""
    stream = StringIO()
    console = Console(file=stream, width=_PIPE_WIDTH, color_system=None, force_terminal=False, highlight=False)
    for part in parts:
        console.print(Harmless(plain(part) if isinstance(part, Table) else part))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def show_document(document: Any, chosen: Format) -> None:
    """JSON or YAML of the same document, keys in reading order."""
    if chosen is Format.JSON:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


def one_or_all(documents: Sequence[Any], names: Sequence[str] | None) -> Any:
    """The document itself when one name was asked for, else the list."""
    return documents[0] if names is not None and len(names) == 1 else list(documents)

"""What is printed for people: our styles, and nobody else's control sequences."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType
from rich.text import Text
from rich.tree import Tree

from retrieval_operator.cli.output import as_text, facts, show, table

# Goes up a line and erases it, sets a clipboard, a link (C1), turns the direction of reading.
HOSTILE = "Failed\x1b[1A\x1b[2K\x1b]52;c;QQ==\x07 \x9b2K\u202eprom"
HARMLESS = "Failed[1A[2K]52;c;QQ== 2Kprom"


def tree(words: str) -> Tree:
    root = Tree(Text(words))
    root.add(Text(words))
    return root


SHOWN = {
    "a tree": tree(HOSTILE),
    "a table": table(["A", "B"], [[HOSTILE, "b"]]),
    "facts": facts([("Message", HOSTILE)]),
    "a text": Text(HOSTILE),
}


@pytest.mark.parametrize("part", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_what_others_wrote_does_nothing_to_the_terminal(
    part: RenderableType, is_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=is_terminal, color_system=None, width=200)
    show([part], console)
    shown = stream.getvalue() or capsys.readouterr().out
    assert HARMLESS in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


def test_our_own_styles_stay() -> None:
    stream = StringIO()
    show([Text("Passed", style="green")], Console(file=stream, force_terminal=True, color_system="standard", width=80))
    assert stream.getvalue() == "\x1b[32mPassed\x1b[0m\n"


def test_lines_and_tabs_of_a_text_stay() -> None:
    assert as_text([Text("one\ntwo")]) == "one\ntwo\n"

"""What the API server takes for a cron expression and a time zone, beside what CronSim and the list of zones take."""

from __future__ import annotations

import datetime as dt
import re
from itertools import product
from zoneinfo import available_timezones

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_operator.api.crd.calendar import CRON_PATTERN, NEVER_PATTERN, TIME_ZONE_PATTERN

MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()  # noqa: SIM905
DAYS = "SUN MON TUE WED THU FRI SAT".split()  # noqa: SIM905
VALUES = {name: number for names, first in ((MONTHS, 1), (DAYS, 0)) for number, name in enumerate(names, first)}

NUMBERS = [*map(str, range(62)), "00", "07", "012", "059", "060", "100"]
STEPS = ["", "/1", "/05", "/7", "/99", "/0", "/00", "/", "/x", "/1/1", "/-1"]
ENDS = ["0", "1", "07", "5", "12", "23", "31", "59", "60", "JAN", "DEC", "feb", "SUN", "sat", "Fri", "L", "DEZ", ""]
ODD = [
    *("L", "LW", "WL", "l", "lw", "L/2", "LW/3", "L-1", "1-L", "5L", "05L", "8L", "L5", "5L/2", "SUNL", "1-5L", "15W"),
    *("1#1", "1#5", "1#6", "1#0", "1#05", "MON#1", "mon#5", "MON#", "#1", "1#1/2", "1-2#1", "5#MON", "JAN#1", "1#1#1"),
    *("*/5", "*/0", "**", "*5", "*-5", "5-*", "1-2-3", "1--2", "-1", "+1", "1.5", "?", "", ",", "1,", ",1", "1,,2"),
    *("1,2,3", "1-5,7", "*,1", "*/2,1-3/2,5", "1,L", "L,LW", "MON,5L,2#2", "SUN-1", "6-SAT", "JAN-2,3-DEC", "@daily"),
]
TERMS = [*NUMBERS, *ODD, *MONTHS, *DAYS]
TERMS += [f"{start}{step}" for start, step in product(["*", "3", "1-5", "JAN", "MON-FRI"], STEPS)]
TERMS += [f"{start}-{end}" for start, end in product(ENDS, ENDS)]
PLACES = ["minute", "hour", "day", "month", "weekday"]


def is_cron(text: str) -> bool:
    try:
        CronSim(text, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError:
        return False
    return True


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text.upper()) is not None


def goes_back(text: str) -> bool:
    """The rule about ranges of crd/calendar.py, in Python; the API server's own is asked in tests/e2e/crd."""
    ranges = [found.split("-") for found in re.findall("[0-9A-Z]+-[0-9A-Z]+", text.upper())]
    values = [[int(end) if end.isdigit() else VALUES.get(end, 0) for end in ends] for ends in ranges]
    return any(start > end for start, end in values)


def is_let_in(text: str) -> bool:
    return matches(CRON_PATTERN, text) and not goes_back(text) and not matches(NEVER_PATTERN, text)


@pytest.mark.parametrize("place", PLACES)
def test_each_field_takes_what_cronsim_takes_and_nothing_else(place: str) -> None:
    position = PLACES.index(place)
    fields = [["0", "0", "1", "1", "1"] for _ in TERMS]
    for field, term in zip(fields, TERMS, strict=True):
        field[position] = term
    texts = [" ".join(field) for field in fields if len(" ".join(field).split()) == 5]
    assert [text for text in texts if is_let_in(text) != is_cron(text)] == []
    assert 20 < sum(map(is_cron, texts)) < len(texts) - 100


def test_what_is_let_in_although_it_never_comes_has_months_with_a_step_or_a_range() -> None:
    days = ["29", "30", "31", "30,31", "31,030", "30/1", "31-31", "30-31/2", "29-31", "1,31", "L", "31,L", "*/30", "*"]
    months = ["1", "2", "02", "FEB", "4", "jun", "2,4", "4,6,9,11", "sep,NOV", "2,3", "*", "2-2", "4/7", "2-4/2"]
    weekdays = ["*", "*/2", "1", "MON#1", "5L"]
    texts = [f"0 0 {day} {month} {weekday}" for day, month, weekday in product(days, months, weekdays)]
    assert [text for text in texts if is_cron(text) and not is_let_in(text)] == []
    let_in = {text.split()[3] for text in texts if is_let_in(text) and not is_cron(text)}
    assert let_in == {"2-2", "4/7", "2-4/2"}
    assert len([text for text in texts if not is_cron(text)]) > 50


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("0123456789*/,-#LWJANMOrifeb?", min_size=1, max_size=6), min_size=4, max_size=6))
def test_no_text_that_cronsim_takes_is_refused(fields: list[str]) -> None:
    text = " ".join(fields)
    if len(fields) == 5 and is_cron(text):
        assert is_let_in(text)
    else:
        assert not is_let_in(text) or re.search("[-/]", fields[3]), "see the test of what is let in"


def test_every_time_zone_of_this_machine_is_one() -> None:
    assert [name for name in available_timezones() if not re.search(TIME_ZONE_PATTERN, name)] == []


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "Europe", "Europe/", "/Europe/Berlin", "utc", "UTC ", "GMT+1", "CEST"]
)
def test_what_is_no_time_zone(name: str) -> None:
    assert re.search(TIME_ZONE_PATTERN, name) is None

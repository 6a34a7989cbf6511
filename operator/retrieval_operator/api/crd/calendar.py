"""What the API server can tell of a cron expression and a time zone: it has neither CronSim nor a list of zones.

All that CronSim takes is taken (tests compare them). Let in is what CronSim refuses of days that none of the months
has, where the months are a range or have a step (`0 0 31 4/7 *`). Of a zone the area is known, not the city. For what
only the operator can tell, it leaves the schedules out, and says so in a condition.

Patterns are those of RE2, and of a cron expression's text in capitals.
"""

from __future__ import annotations

_STEP = "(/0*[1-9][0-9]*)?"
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def _list_of(term: str) -> str:
    return f"({term})(,({term}))*"


def _field(number: str, *others: str) -> str:
    """A field: a list of stars, numbers and ranges, each with a step or without, and of what else the field knows."""
    usual = rf"(\*|({number})(-({number}))?){_STEP}"
    return _list_of("|".join([usual, *others]))


_WEEKDAY = f"0*[0-7]|{'|'.join(_DAYS)}"  # CronSim takes zeros in front of every number
_FIELDS = (
    _field("0*[0-5]?[0-9]"),
    _field("0*(1?[0-9]|2[0-3])"),
    _field("0*([1-9]|[12][0-9]|3[01])", f"LW?{_STEP}"),  # the last day, the last day from Monday to Friday
    _field(f"0*([1-9]|1[0-2])|{'|'.join(_MONTHS)}"),
    _field(_WEEKDAY, "0*[0-7]L", f"({_WEEKDAY})#0*[1-5]"),  # the last one of a month, the n-th one
)
CRON_PATTERN = f"^{' +'.join(_FIELDS)}$"

_FROM_30 = _list_of("0*3[01][^ ,]*")
_FROM_31 = _list_of("0*31[^ ,]*")
_FEBRUARY = _list_of("(0*2|FEB)")
_SHORT_MONTHS = _list_of("(0*([2469]|11)|FEB|APR|JUN|SEP|NOV)")
# With a star for the weekday both days must match, else one of them is enough.
NEVER_PATTERN = rf"^[^ ]+ +[^ ]+ +({_FROM_30} +{_FEBRUARY}|{_FROM_31} +{_SHORT_MONTHS}) +\*[^ ]*$"

# The areas of the time zone database have not changed for decades, and names without one are not added any more.
_AREAS = (
    "Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Brazil|Canada|Chile|Etc|Europe|Indian|Mexico|Pacific|US"
)
_WITHOUT_AREA = (
    "CET|CST6CDT|Cuba|EET|EST|EST5EDT|Egypt|Eire|Factory|GB|GB-Eire|GMT|GMT[+-]?0|Greenwich|HST|Hongkong|Iceland|Iran|"
    "Israel|Jamaica|Japan|Kwajalein|Libya|MET|MST|MST7MDT|NZ|NZ-CHAT|Navajo|PRC|PST8PDT|Poland|Portugal|ROC|ROK|"
    "Singapore|Turkey|UCT|UTC|Universal|W-SU|WET|Zulu|localtime|posixrules"
)
TIME_ZONE_PATTERN = f"^((posix/|right/)?(({_AREAS})(/[A-Za-z0-9_+-]+)+|{_WITHOUT_AREA}))$"

_NUMBERS = ", ".join(
    f'"{name}": {number}' for names, first in ((_MONTHS, 1), (_DAYS, 0)) for number, name in enumerate(names, first)
)
IS_CRON = f"self.upperAscii().matches(r'{CRON_PATTERN}')"
# The names are a list of one, so that they are made once: within, they would cost more than the API server allows.
RANGES_ASCEND = (
    f"[{{{_NUMBERS}}}].all(names, self.upperAscii().findAll('[0-9A-Z]+-[0-9A-Z]+').all(ends, ends.split('-')"
    ".map(end, end < 'A' ? int(end) : names[?end].orValue(0)).isSorted()))"
)
SOME_DAY_MATCHES = f"!self.upperAscii().matches(r'{NEVER_PATTERN}')"
IS_TIME_ZONE = f"self.matches('{TIME_ZONE_PATTERN}')"

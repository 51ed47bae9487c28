"""Patients and series, from a regular expression of a user that finds them in the ids of cases."""

import re
from collections.abc import Mapping, Sequence

from fewshotseg.errors import InputError


def find_groups(pattern: str, ids: Sequence[str], field: str) -> dict[str, str]:
    """The group of every id that a pattern matches: its first parenthesis, or all that it matches.

    Raises:
      InputError: the pattern, which `field` of the configuration has, is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{field} is {pattern!r}, which is no regular expression: {error}."
        ) from error
    found = {case_id: match for case_id in ids if (match := compiled.search(case_id))}
    return {i: match[1 if match.groups() else 0] or "" for i, match in found.items()}


def some_groups(pattern: str, ids: Sequence[str], found: Mapping[str, str], field: str) -> str:
    """What to say where some of the ids have no group; '' where all have one."""
    left = [case_id for case_id in ids if not found.get(case_id)]
    if not left:
        return ""
    return (
        f"{field} is {pattern!r}, which leaves {len(left)} of the {len(ids)} ids without a group, for "
        f"example {', '.join(left[:2])}: patients may be on two sides of the split; correct the pattern"
    )


def no_groups(pattern: str, ids: Sequence[str], field: str) -> str:
    """What to say where none of the ids has a group."""
    return (
        f"{field} is {pattern!r}, which matches none of the {len(ids)} ids, for example "
        f"{', '.join(ids[:2])}: there are 0 groups, and patients may be on two sides of the split. "
        "Correct the pattern."
    )

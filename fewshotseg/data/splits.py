"""Which cases train, which validate, which test.

A few-shot draw is a function of the data set's name, the numbers and the seed alone: cases are put
in the order of a hash, so nothing depends on the order of files or on Python's process. Training
cases come from the front of that order and validation cases from its back; a larger draw with the
same proportions therefore contains the smaller one. Cases of one group (patient, series) and images
that are nearly the same form a cluster, and no cluster is on two sides of a split.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION, clusters
from fewshotseg.data.split_files import PARTS, Lists, Split, read_lists, resolve_ids
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError
from fewshotseg.types import CaseSource

Clusters = Mapping[tuple[str, str], int]  # name of a further test set, or '', and id -> number
TestSets = Mapping[str, tuple[Survey, Sequence[str]]]


def few_shot_split(
    source: CaseSource,
    num_train: int,
    num_validation: int,
    seed: int,
    test_fraction: float = 0.2,
    test_ids: Iterable[str] | None = None,
    lists: Lists | None = None,
    threshold: float = DUPLICATE_CORRELATION,
    survey: Survey | None = None,
    further: TestSets | None = None,
    hold_out: bool = True,
) -> Split:
    """Draws a few cases to train and validate on, and names the untouched test cases.

    The test cases are those listed, else the official 'test', else the official 'validation' part,
    else a fraction of the clusters that is the same for every seed. Train and validation cases are
    drawn from the listed pool, else the listed 'train' part, else the official one, else from all
    that is left, without any that shares a cluster with a test case, an excluded case, or a case of
    a further test set: test sets are the same for every seed, and what resembles them is not trained
    on. Every image is read once, to compare thumbnails.

    Args:
      source: where the cases come from.
      num_train: number of training cases; not used if `lists` has both 'train' and 'validation'.
      num_validation: number of validation cases, likewise.
      seed: another one gives another draw; the test cases stay.
      test_fraction: share of the cases that test, where nothing else says which.
      test_ids: the test cases, in place of the official ones.
      lists: 'train', 'validation', 'test', 'pool', 'exclude' (each optional), see `read_lists`.
        'train' and 'validation' together are taken as they are and nothing is drawn. A 'pool' (or a
        'train' without 'validation') is what training cases are drawn from, and validation cases
        if they are not listed; cases that are also listed elsewhere are not drawn. Those of
        'exclude' are on no side.
      threshold: correlation of thumbnails from which two images count as the same.
      survey: of `source`, if there is one already.
      further: test sets from elsewhere by name. Groups are not compared with theirs, since two
        hospitals may count alike.
      hold_out: False: validation cases are drawn, or taken, all the same, and then train like the others.

    Returns:
      The split.

    Raises:
      InputError: unknown ids, overlapping lists, or not enough cases.
    """
    fixed = {} if lists is None else read_lists(lists, source.ids)
    if test_ids is not None:
        origin = f"the test ids for data set {source.name!r}"
        fixed["test"] = resolve_ids(test_ids, source.ids, origin)
    _refuse_overlap(fixed)
    survey, further = survey or Survey(source), further or {}
    pool, test, candidates, listed = _parts(source, fixed)
    known = pool | listed | {*test, *candidates}
    cluster_of = _read_clusters(survey, sorted(known), further, threshold)
    if candidates:
        closed = {cluster_of["", i] for i in listed | set(fixed.get("pool", ()))}
        candidates = sorted(i for i in candidates if cluster_of["", i] not in closed)
        order = _ordered(candidates, cluster_of, (source.name, "test"))
        test = _first_clusters(order, round(test_fraction * len(candidates)))
        pool = pool - set(test)
    listed_both = "train" in fixed and "validation" in fixed
    if listed_both:
        train, validation = fixed["train"], fixed["validation"]
    else:
        apart = {*test, *listed} - pool
        closed = {number for (name, i), number in cluster_of.items() if name or i in apart}
        free = sorted(i for i in pool if cluster_of["", i] not in closed)
        order = _ordered(free, cluster_of, (source.name, seed))
        num_validation = 0 if "validation" in fixed else num_validation
        train, validation = _draw(order, num_train, num_validation)
        if len(train) < num_train or len(validation) < num_validation:
            raise InputError(
                f"data set {source.name!r}: {num_train} training and {num_validation} validation "
                f"cases were asked for, but only {len(free)} in {len(order)} independent clusters "
                f"(patients, series, look-alikes) are free beside {len(test)} test cases"
                f"{_largest(survey, known, cluster_of)}: ask for fewer or label more."
            )
        validation = fixed.get("validation", validation)
        notes = _left_out(fixed, pool, apart, cluster_of, further)
    if not hold_out:
        train, validation = (*train, *validation), ()
    if listed_both:
        notes = _straddling((train, validation, test), cluster_of, further)
    if not hold_out:
        notes.append(f"no case is held out to validate: all {len(train)} labelled cases train")
    notes += [
        *getattr(source, "notes", ()),
        *_common_groups(survey, (*train, *validation), further),
    ]
    return Split(
        train,
        validation,
        test,
        tuple(notes),
        _numbered({"": test} | {name: ids for name, (_, ids) in further.items()}, cluster_of),
        _groups(survey, {"train": train, "validation": validation, "test": test}, further),
    )


def _parts(source: CaseSource, fixed: Mapping[str, Sequence[str]]):
    """Cases to draw from, test cases, cases to draw test cases from, cases that lists have placed."""
    official = source.official_splits
    listed = {i for role in ("train", "validation", "exclude") for i in fixed.get(role, ())}
    pool = set(fixed.get("pool", fixed.get("train", official.get("train", source.ids))))
    pool -= {*fixed.get("validation", ()), *fixed.get("exclude", ())}
    test = fixed.get("test", official.get("test", official.get("validation")))
    if test is not None:
        test = tuple(case_id for case_id in test if case_id not in listed)
        return pool - set(test), test, set(), listed
    if {"train", "pool"} & fixed.keys():
        return pool, (), set(source.ids) - listed - pool, listed
    return pool, (), set(pool), listed


def _refuse_overlap(parts: Mapping[str, Sequence[str]]) -> None:
    if "pool" in parts and "train" in parts:
        raise InputError(
            "the lists have both 'train' and 'pool': give 'pool' to draw from it, or 'train' with "
            "'validation' to take both as they are."
        )
    roles = (*PARTS, "exclude")
    for index, first in enumerate(roles):
        for second in roles[index + 1 :]:
            common = sorted(set(parts.get(first, ())) & set(parts.get(second, ())))
            if common:
                raise InputError(
                    f"the lists {first!r} and {second!r} share {_cases(common)}, for example "
                    f"{common[0]!r}: remove from one of them what they share."
                )


def _read_clusters(survey: Survey, ids: Sequence[str], further: TestSets, threshold: float):
    keys = [("", case_id) for case_id in ids]
    keys += [(name, case_id) for name, (_, others) in further.items() for case_id in others]
    records = [(further[name][0] if name else survey)[case_id] for name, case_id in keys]
    groups = [
        f"{name}\0{record.group}" if record.group else ""
        for (name, _), record in zip(keys, records, strict=True)
    ]
    numbers = clusters(np.stack([record.thumbnail for record in records]), groups, threshold)
    return dict(zip(keys, numbers.tolist(), strict=True))


def _hash(*parts) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def _ordered(ids: Sequence[str], cluster_of: Clusters, key: tuple) -> list[list[str]]:
    """Clusters in hash order, their members in hash order."""
    members = {}
    for case_id in ids:
        members.setdefault(cluster_of["", case_id], []).append(case_id)
    in_order = sorted(members.values(), key=lambda cluster: _hash(*key, min(cluster)))
    return [sorted(cluster, key=lambda i: _hash(*key, "member", i)) for cluster in in_order]


def _first_clusters(order: Sequence[Sequence[str]], number: int) -> tuple[str, ...]:
    chosen = []
    for cluster in sorted(order, key=lambda cluster: len(cluster) > number):  # too large ones last
        if len(chosen) >= number:
            break
        chosen += cluster
    return tuple(chosen)


def _draw(order: list[list[str]], num_train: int, num_validation: int):
    """Training cases from the front clusters, validation cases from the back ones.

    The clusters are divided in proportion to the two numbers, so the division is the same for every
    draw of these proportions; within a side every cluster gives one case before any gives a second.
    """
    total = sum(map(len, order))
    wanted = -(-num_validation * total // max(num_train + num_validation, 1))
    large_first = sorted(order, key=len, reverse=True)
    attempts = ((order, wanted), (order, num_validation), (large_first, num_validation))
    for order, share in attempts:  # the later ones only where clusters are too coarse
        back = 0
        while sum(map(len, order[len(order) - back :])) < share and back < len(order):
            back += 1
        front = len(order) - back
        train = _round_robin(order[:front])[:num_train]
        validation = _round_robin(order[front:][::-1])[:num_validation]
        if len(train) == num_train and len(validation) == num_validation:
            break
    return tuple(train), tuple(validation)


def _round_robin(order: Sequence[Sequence[str]]) -> list[str]:
    longest = max(map(len, order), default=0)
    return [cluster[turn] for turn in range(longest) for cluster in order if turn < len(cluster)]


def _cases(ids) -> str:
    return "1 case" if len(ids) == 1 else f"{len(ids)} cases"


def _left_out(fixed, pool, apart, cluster_of: Clusters, further: TestSets) -> list[str]:
    """What a draw did not draw from, and why."""
    notes, was = [], {True: "was", False: "were"}
    elsewhere = {i for role in ("validation", "test", "exclude") for i in fixed.get(role, ())}
    if twice := set(fixed.get("pool", ())) & elsewhere:
        notes.append(
            f"{_cases(twice)} of the pool {was[len(twice) == 1]} not drawn, being listed to "
            "validate, to test or as excluded too"
        )
    closed = {cluster_of["", i] for i in apart}
    if left := [i for i in pool if cluster_of["", i] in closed]:
        notes.append(
            f"{_cases(left)} {was[len(left) == 1]} left out of the draw: a patient, a series or "
            "nearly the same image (also mirrored) is also among the test or validation cases"
        )
    for name, (_, ids) in further.items():
        numbers = {cluster_of[name, i] for i in ids}
        if left := [i for i in pool if cluster_of["", i] in numbers]:
            notes.append(
                f"{_cases(left)} {was[len(left) == 1]} left out of the draw: nearly the same image "
                f"(also mirrored) is in the test set {name}"
            )
    return notes


def _straddling(parts, cluster_of: Clusters, further: TestSets) -> list[str]:
    """What is on two sides of a split that was listed, and therefore not touched."""
    notes = []
    sides = [{cluster_of["", i] for i in part} for part in parts]
    if shared := (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2]):
        what = (
            "1 patient, series or set"
            if len(shared) == 1
            else f"{len(shared)} patients, series or sets"
        )
        notes.append(
            f"{what} of look-alike images on two sides of the listed split: the scores will look "
            "better than they are"
        )
    for name, (_, ids) in further.items():
        if seen := [i for i in ids if cluster_of[name, i] in sides[0] | sides[1]]:
            notes.append(
                f"{len(seen)} of {_cases(ids)} of the test set {name} look like training or "
                "validation images (also mirrored): its scores will look better than they are"
            )
    return notes


def _common_groups(survey: Survey, ids: Sequence[str], further: TestSets) -> list[str]:
    ours, notes = {survey[i].group for i in ids} - {""}, []
    for name, (other, other_ids) in further.items():
        if common := sorted(ours & {other[i].group for i in other_ids}):
            notes.append(
                f"the test set {name} has groups of the same name as training or validation cases "
                f"({len(common)}, for example {common[0]}): if these are the same patients, its "
                "scores will look better than they are"
            )
    return notes


def _largest(survey: Survey, ids: Iterable[str], cluster_of: Clusters) -> str:
    """Names a cluster that holds most of the cases, if there is one."""
    members: dict[int, list[str]] = {}
    for case_id in sorted(ids):
        members.setdefault(cluster_of["", case_id], []).append(case_id)
    largest, total = max(members.values(), key=len, default=[]), sum(map(len, members.values()))
    if 2 * len(largest) <= total:
        return ""
    groups = {survey[i].group for i in largest}
    one_group = len(groups) == 1 and groups != {""}
    what = f"patient or series {min(groups)!r}" if one_group else "one set of look-alikes"
    return f"; {what} alone has {len(largest)} of all {total} cases, such as {largest[0]}"


def _numbered(tests: Mapping[str, Sequence[str]], cluster_of: Clusters):
    """Clusters of the test cases, numbered from 0 in the order in which they come."""
    numbers: dict[int, int] = {}
    return {
        name or "test": {i: numbers.setdefault(cluster_of[name, i], len(numbers)) for i in ids}
        for name, ids in tests.items()
    }


def _groups(survey: Survey, parts: Mapping[str, Sequence[str]], further: TestSets):
    sides = {part: (survey, ids) for part, ids in parts.items()} | dict(further)
    named = {
        part: {i: seen[i].group for i in ids if seen[i].group}
        for part, (seen, ids) in sides.items()
    }
    return {part: groups for part, groups in named.items() if groups}

"""Which cases train, which validate, which test.

A few-shot draw is a function of the data set's name, the numbers and the seed alone: cases are put
in the order of a hash, so nothing depends on the order of files or on Python's process. Training
cases come from the front of that order and validation cases from its back; a larger draw with the
same proportions therefore contains the smaller one. Cases of one group (patient, series) and images
that are nearly the same form a cluster, and no cluster is on two sides of a split.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION, THUMBNAIL_SIZE, clusters, thumbnail
from fewshotseg.data.split_files import PARTS, Lists, Split, read_lists, resolve_ids
from fewshotseg.errors import InputError
from fewshotseg.types import CaseSource


def few_shot_split(
    source: CaseSource,
    num_train: int,
    num_validation: int,
    seed: int,
    test_fraction: float = 0.2,
    test_ids: Iterable[str] | None = None,
    lists: Lists | None = None,
    threshold: float = DUPLICATE_CORRELATION,
) -> Split:
    """Draws a few cases to train and validate on, and names the untouched test cases.

    The test cases are those listed, else the official 'test', else the official 'validation' part,
    else a fraction of the clusters that is the same for every seed. Train and validation cases are
    drawn from the listed 'train' part, else the official one, else from all that is left, without
    any that shares a cluster with a test case. Every image is read once, to compare thumbnails.

    Args:
      source: where the cases come from.
      num_train: number of training cases; not used if `lists` has both 'train' and 'validation'.
      num_validation: number of validation cases, likewise.
      seed: another one gives another draw; the test cases stay.
      test_fraction: share of the cases that test, where nothing else says which.
      test_ids: the test cases, in place of the official ones.
      lists: 'train', 'validation', 'test' (each optional) as a mapping to ids or to text files, a
        JSON file, or a folder with train.txt, validation.txt (or val.txt), test.txt. Parts listed
        are taken as they are, but a 'train' without 'validation' is the pool for both.
      threshold: correlation of thumbnails from which two images count as the same.

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
    pool, test, cluster_of = _pool_and_test(source, fixed, test_fraction, threshold)
    if "train" in fixed and "validation" in fixed:
        split = Split(fixed["train"], fixed["validation"], test)
        return dataclasses.replace(split, notes=_straddling(split, cluster_of))
    closed = {cluster_of[case_id] for case_id in (*test, *fixed.get("validation", ()))}
    free = sorted(case_id for case_id in pool if cluster_of[case_id] not in closed)
    order = _ordered(free, cluster_of, (source.name, seed))
    num_validation = 0 if "validation" in fixed else num_validation
    train, validation = _draw(order, num_train, num_validation)
    if len(train) < num_train or len(validation) < num_validation:
        raise InputError(
            f"data set {source.name!r}: {num_train} training and {num_validation} validation cases "
            f"were asked for, but only {len(free)} in {len(order)} independent clusters (patients, "
            f"series, look-alikes) are free beside {len(test)} test cases: ask for fewer or label "
            "more."
        )
    notes = (
        f"{len(pool) - len(free)} cases were left out of the draw: a patient, a series or nearly "
        "the same image is also among the test or validation cases",
    )
    return Split(
        train, fixed.get("validation", validation), test, notes if len(free) < len(pool) else ()
    )


def _refuse_overlap(parts: Mapping[str, Sequence[str]]) -> None:
    for index, first in enumerate(PARTS):
        for second in PARTS[index + 1 :]:
            common = sorted(set(parts.get(first, ())) & set(parts.get(second, ())))
            if common:
                raise InputError(
                    f"the lists {first!r} and {second!r} share {len(common)} cases, for example "
                    f"{common[0]!r}: remove them from one of the lists."
                )


def _pool_and_test(
    source: CaseSource, fixed: Mapping[str, tuple[str, ...]], test_fraction: float, threshold: float
) -> tuple[set[str], tuple[str, ...], dict[str, int]]:
    """Cases to draw from, test cases, and the cluster of each case that matters."""
    official = source.official_splits
    listed = {*fixed.get("train", ()), *fixed.get("validation", ())}
    pool = set(fixed.get("train", official.get("train", source.ids)))
    pool -= set(fixed.get("validation", ()))
    test = fixed.get("test", official.get("test", official.get("validation")))
    if test is not None:
        test = tuple(case_id for case_id in test if case_id not in listed)
        pool -= set(test)
        cluster_of = _read_clusters(source, sorted(pool | listed | set(test)), threshold)
        return pool, test, cluster_of
    candidates = set(source.ids) - listed if "train" in fixed else pool
    cluster_of = _read_clusters(source, sorted(pool | listed | candidates), threshold)
    closed = {cluster_of[case_id] for case_id in listed}
    candidates = sorted(i for i in candidates if cluster_of[i] not in closed)
    order = _ordered(candidates, cluster_of, (source.name, "test"))
    test = _first_clusters(order, round(test_fraction * len(candidates)))
    return pool - set(test), test, cluster_of


def _read_clusters(source: CaseSource, ids: Sequence[str], threshold: float) -> dict[str, int]:
    thumbnails, groups = np.zeros((len(ids), THUMBNAIL_SIZE**2), np.float32), []
    for index, case_id in enumerate(ids):
        case = source.load(case_id)
        thumbnails[index] = thumbnail(case.image)
        groups.append(case.group)
    return dict(zip(ids, clusters(thumbnails, groups, threshold).tolist(), strict=True))


def _hash(*parts) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def _ordered(ids: Sequence[str], cluster_of: Mapping[str, int], key: tuple) -> list[list[str]]:
    """Clusters in hash order, their members in hash order."""
    members = {}
    for case_id in ids:
        members.setdefault(cluster_of[case_id], []).append(case_id)
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


def _straddling(split: Split, cluster_of: Mapping[str, int]) -> tuple[str, ...]:
    sides = [{cluster_of[i] for i in getattr(split, part)} for part in PARTS]
    shared = len((sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2]))
    if not shared:
        return ()
    return (
        f"{shared} patients, series or look-alike images are on two sides of the listed split: the "
        "scores will look better than they are",
    )

"""Which cases train, which validate, which test.

A few-shot draw is a function of the data set's name, the numbers and the seed alone: cases are put
in the order of a hash, so nothing depends on the order of files or on Python's process. Training
cases come from the front of that order and validation cases from its back; a larger draw with the
same proportions therefore contains the smaller one. Cases of one group (patient, series) and images
that are nearly the same form a cluster, and no cluster is on two sides of a split.
"""

import collections
import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fewshotseg.data.transforms import EXTENSIONS
from fewshotseg.errors import InputError
from fewshotseg.types import CaseSource

THUMBNAIL_SIZE = 24
DUPLICATE_CORRELATION = 0.95
_PARTS = ("train", "validation", "test")

Lists = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str] | Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Ids on each side, in the order they were drawn; `notes` tell what a user should know."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    notes: tuple[str, ...] = ()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A small grey copy with mean 0 and length 1, so that a dot product is a correlation.

    Args:
      image: uint8 `[H, W, C]`, C is 1 or 3.

    Returns:
      float32 `[24 * 24]`; all zero if the image is flat.
    """
    grey = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L")
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    small = np.asarray(grey.resize(size, Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    length = np.linalg.norm(small)
    return small / length if length > 1e-3 else np.zeros_like(small)


def near_duplicates(
    thumbnails: np.ndarray, threshold: float = DUPLICATE_CORRELATION
) -> list[tuple[int, int, float]]:
    """Pairs of images that look the same.

    Args:
      thumbnails: float32 `[N, 24 * 24]` from `thumbnail`.
      threshold: least correlation of such a pair.

    Returns:
      `(i, j, correlation)` with i < j, ascending.
    """
    pairs = []
    for start in range(0, len(thumbnails), 1024):
        block = thumbnails[start : start + 1024]
        correlation = block @ thumbnails[start:].T
        rows, columns = np.nonzero(np.triu(correlation >= threshold, k=1))
        pairs += [
            (start + int(i), start + int(j), float(correlation[i, j]))
            for i, j in zip(rows, columns, strict=True)
        ]
    return pairs


def clusters(
    thumbnails: np.ndarray, groups: Sequence[str], threshold: float = DUPLICATE_CORRELATION
) -> np.ndarray:
    """Numbers the sets of cases that must stay together.

    Args:
      thumbnails: float32 `[N, 24 * 24]`.
      groups: N patients or series; '' belongs to no group.
      threshold: see `near_duplicates`.

    Returns:
      int `[N]`; equal numbers are linked by a common group or by near-duplicates.
    """
    links = [(i, j) for i, j, _ in near_duplicates(thumbnails, threshold)]
    first_of = {}
    for index, group in enumerate(groups):
        if group:
            links.append((first_of.setdefault(group, index), index))
    number = len(groups)
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(number, number))
    return connected_components(graph, directed=False)[1]


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


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Ids from a text file, one a line; empty lines and lines that begin with # are skipped."""
    text = _read_text(path)
    lines = [line.strip() for line in text.splitlines()]
    ids = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not ids:
        raise InputError(f"{path}: the list is empty: write one case id per line.")
    return ids


def resolve_ids(names: Iterable[str], known: Sequence[str], origin: str) -> tuple[str, ...]:
    """Checks ids against the known ones and drops repetitions.

    A file extension is forgiven, and so is a missing folder where only one id ends in that name.

    Raises:
      InputError: names the origin, the first unknown id and the closest known one.
    """
    lookup = {case_id: case_id for case_id in known}
    count = collections.Counter(case_id.rpartition("/")[2] for case_id in known)
    for case_id in known:
        if count[case_id.rpartition("/")[2]] == 1:
            lookup.setdefault(case_id.rpartition("/")[2], case_id)
    resolved, unknown = [], []
    for name in names:
        stem, extension = os.path.splitext(name)
        if name not in lookup and extension.lower() in EXTENSIONS:
            name = stem
        (resolved if name in lookup else unknown).append(lookup.get(name, name))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(
            f"{origin}: there is no case {unknown[0]!r}{more}; the closest is "
            f"{close[0] if close else 'none'!r}."
        )
    return tuple(dict.fromkeys(resolved))


def read_lists(lists: Lists, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads explicit lists: see `few_shot_split`.

    Raises:
      InputError: unreadable or unknown part, unknown id.
    """
    origin = "the lists"
    if isinstance(lists, str | os.PathLike):
        path = pathlib.Path(lists)
        origin = str(path)
        if path.is_dir():
            names = {"val": "validation"} | {part: part for part in _PARTS}
            lists = {
                part: path / f"{name}.txt"
                for name, part in names.items()
                if (path / f"{name}.txt").is_file()
            }
            if "train" not in lists and "test" not in lists:
                raise InputError(f"{path}: neither train.txt nor test.txt is in this folder.")
        else:
            lists = _read_json(path)
    parts = {}
    for key, value in lists.items():
        part = {"val": "validation"}.get(key, key.partition("/")[0])
        if part not in _PARTS:
            raise InputError(f"{origin}: part {key!r} is none of {', '.join(_PARTS)}.")
        if part in parts:  # 'test/<name>' of further data sets, in a file of an earlier run
            continue
        from_file = isinstance(value, str | os.PathLike)
        ids = read_ids(value) if from_file else value
        parts[part] = resolve_ids(ids, known, str(value) if from_file else f"{origin} ({key})")
    return parts


def write_split(
    path: str | os.PathLike[str],
    split: Split,
    tests: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a split as JSON; the file appears complete or not at all.

    Args:
      path: of the file; its folder must exist.
      split: what to write, as 'train', 'validation' and 'test'.
      tests: test sets by name, written as 'test/<name>' in place of `split.test`.

    Raises:
      InputError: the file cannot be written.
    """
    content = {"train": split.train, "validation": split.validation}
    named = {"test": split.test} if tests is None else {f"test/{k}": v for k, v in tests.items()}
    text = json.dumps({k: list(v) for k, v in (content | named).items()}, indent=1) + "\n"
    path = pathlib.Path(path)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


def read_split(path: str | os.PathLike[str]) -> Split:
    """Reads what `write_split` wrote; of several named test sets the first one.

    Raises:
      InputError: missing or damaged file.
    """
    content = _read_json(path)
    test = next((value for key, value in content.items() if key.split("/")[0] == "test"), [])
    missing = [part for part in ("train", "validation") if part not in content]
    if missing:
        raise InputError(f"{path}: {missing[0]!r} is missing: this is no split file.")
    return Split(tuple(content["train"]), tuple(content["validation"]), tuple(test))


def _read_text(path) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: the list cannot be read ({reason}).") from error


def _read_json(path) -> dict[str, list[str]]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in content.values()
    ):
        raise InputError(f'{path}: expected JSON like {{"train": ["id", ...], "test": [...]}}.')
    return content


def _refuse_overlap(parts: Mapping[str, Sequence[str]]) -> None:
    for index, first in enumerate(_PARTS):
        for second in _PARTS[index + 1 :]:
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
    sides = [{cluster_of[i] for i in getattr(split, part)} for part in _PARTS]
    shared = len((sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2]))
    if not shared:
        return ()
    return (
        f"{shared} patients, series or look-alike images are on two sides of the listed split: the "
        "scores will look better than they are",
    )

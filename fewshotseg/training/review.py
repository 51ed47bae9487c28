"""What a person is shown, and what becomes of the answers: the state behind the page of `web/review.py`.

Hidden among them are real training images, and pairs that were shown before: they say how far a rater can
be relied on, and nothing tells them from the others until they are answered.
"""

import dataclasses
import datetime
import pathlib
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg import errors, figures
from fewshotseg.data import look_alikes
from fewshotseg.runs import ratings as store
from fewshotseg.training.review_choice import Pair, choose

COMMENT = "synthetic pair, made by fewshotseg, no patient"
COMMENT_LABEL = "label corrected with fewshotseg; its image is a case of the run, and is not here"
LEAST_TO_FIT = 12  # answers from which on R has a say in what is shown
MOST_MS = 3_600_000  # who takes longer was somewhere else


@dataclasses.dataclass(frozen=True)
class Item:
    """One showing of a pair."""

    id: str
    name: str
    kind: str
    sheet: int


class Session:
    """Sheets of pairs and the answers to them; several pages at once take turns.

    Args:
      folder: of ratings.jsonl and of the pictures that were rated.
      pairs: synthetic ones.
      real: hidden ones, of training cases.
      classes: names of the foreground classes.
      about: of every line: 'method', 'checkpoint', 'theta' and 'seed'.
      redraw: `(pair, mask) -> Pair`, or None where nothing draws; raises InputError where that pair cannot
        be drawn again.
      fit: `rows -> Reward or None`, of answers given here.
      disagree: `(reward, pairs) -> [N]`.
      num_shown: on a sheet.
      real_share: of hidden real images on a sheet, about.
      repeat_share: of pairs shown before, about.
      diversity: see `choose`.
      seed: of the order.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        pairs: Sequence[Pair],
        real: Sequence[Pair],
        classes: Sequence[str],
        about: Mapping[str, Any],
        *,
        redraw: Callable | None,
        fit: Callable,
        disagree: Callable,
        num_shown: int,
        real_share: float,
        repeat_share: float,
        diversity: float,
        seed: int,
    ):
        self.path = pathlib.Path(folder) / store.FILE
        self.classes, self.size = tuple(classes), pairs[0].mask.shape
        self._about, self._redraw, self._fit, self._disagree = dict(about), redraw, fit, disagree
        self._num_shown, self._shares = num_shown, (real_share, repeat_share)
        self._diversity, self._seed = diversity, seed
        self._pairs = {pair.name: pair for pair in (*pairs, *real)}
        self._real = [pair.name for pair in real]
        self._thumbnails = {pair.name: look_alikes.thumbnail(pair.image) for pair in real}
        self._items: dict[str, Item] = {}
        self._sheets: list[list[str]] = []
        self._lock = threading.RLock()

    def describe(self) -> dict[str, Any]:
        """What the page has to know once."""
        return {
            "classes": self.classes,
            "height": self.size[0],
            "width": self.size[1],
            "tags": store.TAGS,
            "redraws": self._redraw is not None,
            "method": self._about["method"],
        }

    def sheet(self, number: int | None, rater: str) -> dict[str, Any]:
        """A sheet with the answers of a rater so far; None: the last one, which there always is.

        Raises:
          InputError: there is no such sheet, and it is not the next one either; or nothing is left.
        """
        with self._lock:
            number = max(len(self._sheets) - 1, 0) if number is None else number
            if not 0 <= number <= len(self._sheets):
                raise errors.InputError("there is no such sheet.")
            rows = store.active(store.read(self.path))
            if number == len(self._sheets):
                self._add_sheet(rows)
            mine = {row["item"]: row for row in rows if row["rater"] == rater}
            items = [
                {
                    "id": i,
                    "answer": mine[i]["answer"] if i in mine else "",
                    "tags": mine[i]["tags"] if i in mine else [],
                    "ms": mine[i]["ms"] if i in mine else 0,
                }
                for i in self._sheets[number]
            ]
            return {"number": number, "items": items, "progress": _progress(rows, rater)}

    def progress(self, rater: str) -> dict[str, Any]:
        """How far a rater has come, see `ratings.consistency`."""
        return _progress(store.active(store.read(self.path)), rater)

    def pair(self, item: str) -> Pair:
        """What is shown.

        Raises:
          KeyError: nothing of that id.
        """
        return self._pairs[self._items[item].name]

    def nearest(self, item: str) -> tuple[np.ndarray, float]:
        """The real training image that looks most like the one shown, and the correlation.

        Of a hidden real image, another one: it would give itself away.
        """
        pair = self.pair(item)
        names = [name for name in self._real if self._pairs[name].cases != pair.cases]
        names = names if pair.kind == "real" and names else self._real
        stack = np.stack([self._thumbnails[name] for name in names])
        best, correlation = look_alikes.nearest(look_alikes.thumbnail(pair.image), stack)
        return self._pairs[names[best]].image, correlation

    def rate(
        self, item: str, answer: str, tags: Sequence[str], rater: str, tab: str, ms: int
    ) -> None:
        """Notes an answer.

        Raises:
          KeyError: no such item.
          InputError: no such answer or tag; or the file cannot be written.
        """
        if answer not in store.ANSWERS or not set(tags) <= set(store.TAGS):
            raise errors.InputError(
                f"answers are {', '.join(store.ANSWERS)}, tags {', '.join(store.TAGS)}."
            )
        self._note(item, answer, tags, rater, tab, ms, "")

    def correct(self, item: str, mask: np.ndarray, rater: str, tab: str, ms: int) -> None:
        """Notes that a mask is the right label of the image shown, and keeps both; of a real one, the mask.

        Raises:
          KeyError: no such item.
          InputError: a mask that cannot be one; or the file cannot be written.
        """
        pair = self.pair(item)
        right = dataclasses.replace(pair, mask=self._checked(mask))
        if pair.kind == "real":  # no copy of a patient's image
            figures.save_image(
                right.mask, store.label_path(self.path, right.name), comment=COMMENT_LABEL
            )
        else:
            self._write(right)
        self._note(item, store.CORRECTED, ["mask mismatch"], rater, tab, ms, right.name)

    def redraw(self, item: str, mask: np.ndarray) -> int:
        """Draws an image for a changed mask, and shows the pair behind the one it was made of.

        Returns:
          The sheet that it is on.

        Raises:
          KeyError: no such item.
          InputError: nothing here draws an image for any mask.
        """
        with self._lock:
            old, pair = self._items[item], self.pair(item)
            if self._redraw is None or pair.kind == "real":
                raise errors.InputError("this pair cannot be drawn again: its image is a real one.")
            drawn = self._redraw(pair, self._checked(mask))
            self._pairs[drawn.name] = drawn
            sheet = self._sheets[old.sheet]
            sheet.insert(sheet.index(item) + 1, self._new_item(drawn.name, "redraw", old.sheet))
            return old.sheet

    def undo(self, rater: str, tab: str) -> dict[str, Any] | None:
        """Takes back the newest answer of a rater in a tab: its item and sheet; None if there is none."""
        with self._lock:
            row = store.last_of(store.read(self.path), rater, tab)
            if row is None:
                return None
            store.append(self.path, {store.UNDO: row["id"], "time": _now(), "rater": rater})
            item = self._items.get(row["item"])
            return {"item": row["item"], "sheet": item.sheet if item else None}

    def table(self) -> list[dict[str, Any]]:
        """See `ratings.table`."""
        return store.table(store.read(self.path))

    def _note(self, item, answer, tags, rater, tab, ms, label):
        with self._lock:
            shown, pair = self._items[item], self.pair(item)
            if pair.kind != "real":
                self._write(pair)
            row = {
                "id": uuid.uuid4().hex[:12],
                "time": _now(),
                "rater": rater,
                "item": item,
                "kind": shown.kind,
                "pair": pair.name,
                "mask": store.hash_arrays(pair.mask),
                "source": pair.source,
                "number": pair.number,
                "cases": pair.cases,
                **self._about,
                "answer": answer,
                "tags": list(tags),
                "label": label,
                "ms": int(np.clip(ms, 0, MOST_MS)),
                "tab": tab,
            }
            store.append(self.path, row)

    def _write(self, pair):
        paths = [
            self.path.parent / part / f"synthetic_{pair.name}.png" for part in ("masks", "images")
        ]
        if not paths[1].exists():  # written last
            figures.save_image(pair.mask, paths[0], comment=COMMENT)
            figures.save_image(pair.image, paths[1], comment=COMMENT)

    def _checked(self, mask):
        if mask.shape != self.size or mask.max(initial=0) > len(self.classes):
            raise errors.InputError("the mask is not of this picture's size and classes.")
        return np.ascontiguousarray(mask, np.uint8)

    def _new_item(self, name, kind, sheet):
        item = Item(uuid.uuid4().hex, name, kind, sheet)
        self._items[item.id] = item
        return item.id

    def _add_sheet(self, rows):
        numbers = np.random.default_rng((self._seed, len(self._sheets), len(rows)))
        rated = {row["pair"] for row in rows}
        shown = {item.name for item in self._items.values()} | rated
        fresh = [p for n, p in self._pairs.items() if p.kind == "synthetic" and n not in shown]
        before = sorted(
            {row["pair"] for row in rows if row["kind"] == "synthetic"} & self._pairs.keys()
        )
        kinds = numbers.random(self._num_shown)
        num_real = int((kinds < self._shares[0]).sum())
        num_repeats = min(int((kinds > 1.0 - self._shares[1]).sum()), len(before))
        num_fresh = min(self._num_shown - num_real - num_repeats, len(fresh))
        if not num_fresh:
            raise errors.InputError(
                "all pairs have been shown: raise review.num_pairs and feedback.pool_size for more."
            )
        reward = self._fit(rows) if len(rows) >= LEAST_TO_FIT else None
        disagreement = self._disagree(reward, fresh) if reward else np.ones(len(fresh))
        drawn = [(fresh[i].name, "synthetic") for i in self._choose(fresh, num_fresh, disagreement)]
        drawn += [(str(name), "repeat") for name in numbers.permutation(before)[:num_repeats]]
        drawn += [(str(name), "real") for name in numbers.permutation(self._real)[:num_real]]
        sheet = len(self._sheets)
        order = numbers.permutation(len(drawn))
        self._sheets.append([self._new_item(*drawn[i], sheet) for i in order])

    def _choose(self, fresh, count, disagreement):
        return choose(fresh, count, disagreement, self._diversity)


def _progress(rows, rater):
    return store.consistency(rows).get(rater, {"answers": 0})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")

"""Which method of a run is handed over: one rule, for prediction and for the report."""

from collections.abc import Collection, Sequence

from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS


def predicting_method(
    named: str, methods: Sequence[str], trained: Collection[str]
) -> tuple[str, str]:
    """The method that predicts, and why.

    The configuration decides, never a score: the best of several methods on a handful of validation
    images was best on the test images in 3 of 15 comparisons.

    Args:
      named: `predict.method` of the configuration; '' for the last of `methods`.
      methods: of the configuration, in the order they are trained.
      trained: the methods that can predict.

    Returns:
      The method and the reason, as part of a sentence.

    Raises:
      InputError: nothing is trained, or not the method that is named.
    """
    known = [method for method in METHODS if method in trained]
    if not known:
        raise InputError("nothing is trained here yet: run --mode=train first.")
    if named:
        if named not in known:
            raise InputError(
                f"predict.method is {named!r}, but trained in this run are: {', '.join(known)}."
            )
        return named, "named by predict.method"
    in_order = [method for method in methods if method in trained] or known
    if methods and in_order[-1] != methods[-1]:
        return in_order[-1], f"the last that is trained; {methods[-1]} is not yet"
    return in_order[-1], "the last of the run's methods; predict.method can name another"

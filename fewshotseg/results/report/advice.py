"""What the numbers mean: which model to use, and whether co-training helped."""

import dataclasses
import itertools
import os
import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from fewshotseg.errors import InputError
from fewshotseg.results import statistics
from fewshotseg.results.choice import predicting_method
from fewshotseg.results.report import words
from fewshotseg.results.report.run import Run
from fewshotseg.results.report.scores import (
    BASELINE,
    CO_TRAINING,
    Comparison,
    Score,
    against_threshold,
    grouped,
)
from fewshotseg.runs import remote


@dataclasses.dataclass(frozen=True)
class Verdict:
    """tone is 'helped', 'none', 'hurt', or 'open' if it is too early for any of them."""

    subject: str
    tone: str
    headline: str
    text: str


@dataclasses.dataclass(frozen=True)
class Handover:
    """Which model of a run to use on new images; `method` is None if it should be none of them.

    `method` is also what `--mode=predict` takes without a name, unless `command` names another.
    """

    run: Run
    method: str | None
    tone: str
    headline: str
    sentences: tuple[str, ...]
    command: str
    worst: tuple[str, str] | None  # method and test set whose worst cases are to be looked at


def handovers(scores: Sequence[Score]) -> list[Handover]:
    """Advice for whoever wants masks, from the first evaluated run of every experiment.

    The method is the one that prediction takes (`choice.predicting_method`). The test images can
    only object: if it is no better than a grey-value threshold, or measurably worse than another.
    """
    found = []
    for _, of_one in grouped(scores, lambda score: score.experiment):
        run = of_one[0].run
        found.append(_handover(run, [s for s in of_one if s.run is run]))
    return found


def _handover(run: Run, scores: Sequence[Score]) -> Handover:
    named = run.config.get("predict")
    named = named.get("method", "") if isinstance(named, Mapping) else ""
    main = [s for s in scores if s.test_set == scores[0].test_set]  # the first test set decides
    trained = [s.method for s in main]
    try:
        method, why = predicting_method(named, run.methods, trained)
    except InputError:  # what the run names is not evaluated
        method, why = predicting_method("", run.methods, trained)
    chosen = next(s for s in main if s.method == method)
    rivals = [(s, _difference(chosen, s)) for s in main if s is not chosen]
    adjusted = statistics.holm([d["p_wilcoxon"] for _, d in rivals])
    better = [
        (s, d)
        for (s, d), p in zip(rivals, adjusted, strict=True)
        if words.side(d["ci95"]) < 0 and p < 0.05
    ]
    sentences = [f"Prediction takes {method} ({why})."]
    sentences += [_score_sentence(s) for s in scores if s.method == method]
    use, tone = method, "helped"
    if better:
        best, difference = min(better, key=lambda pair: pair[1]["mean"])
        use, tone = best.method, "open"
        sentences.append(
            f"But on test set {chosen.test_set} {method} is worse than {use}: Dice "
            f"{words.signed(difference['mean'])} {words.interval(difference['ci95'], sign=True)} "
            f"over the same {difference['n']} cases. Name {use} as below to predict with it."
        )
        sentences += [_score_sentence(s) for s in scores if s.method == use]
    elif rivals:
        unlike = [s.method for s, d in rivals if words.is_open(d["ci95"])]
        alike = [
            s.method for s, d in rivals if words.side(d["ci95"]) < 1 and s.method not in unlike
        ]
        if alike:
            sentences.append(
                f"On test set {chosen.test_set} there is no measurable difference in Dice to "
                f"{', '.join(alike)}."
            )
        if unlike:
            sentences.append(
                f"Test set {chosen.test_set} has too few cases to tell it from {', '.join(unlike)}."
            )
    used = next(s for s in main if s.method == use)
    threshold = against_threshold(used)
    if threshold is not None and threshold["n"] and not threshold["mean"] > 0:
        return Handover(
            run,
            None,
            "hurt",
            f"Use none of these models: {use} is no better than one grey-value threshold.",
            tuple(sentences),
            "",
            (use, used.test_set),
        )
    if threshold is not None and words.side(threshold["ci95"]) < 1:
        tone = "open"
        if not words.is_open(threshold["ci95"]):
            sentences.append("The lead over the threshold is too small for this many test cases.")
    instead = "" if use == method else f", not {method}"
    command = f"python run.py --mode=predict --workdir={shlex.quote(_place(run))}"
    command += f" --config.predict.method={use} --input=NEW_IMAGES --output=MASKS"
    headline = f"Use {use}{instead}: Dice {words.number(used.summary['dice']['mean'])}"
    headline += f"{_bracketed(used.summary['dice']['ci95'])} on test set {used.test_set}."
    return Handover(run, use, tone, headline, tuple(sentences), command, (use, used.test_set))


def _bracketed(ci95) -> str:
    """An interval with a space before it; '' if it is undefined."""
    return "" if words.is_open(ci95) else f" {words.interval(ci95)}"


def _difference(a: Score, b: Score) -> Mapping:
    return statistics.paired_difference(a.by_case(), b.by_case(), a.units)


def _score_sentence(score: Score) -> str:
    dice = score.summary["dice"]
    text = f"{score.method} on test set {score.test_set}: Dice {words.number(dice['mean'])}"
    if words.is_open(dice["ci95"]):
        text += f" over {score.over}, too few for an interval"
    else:
        text += f", 95 % CI {words.interval(dice['ci95'])} over {score.over}"
    against = against_threshold(score)
    if against is None:
        return text + "; it was never compared with a grey-value threshold."
    if not against["n"]:
        return text + "; no case has a Dice to compare with a grey-value threshold."
    if words.is_open(against["ci95"]):
        return (
            f"{text}; minus one grey-value threshold {words.signed(against['mean'])}, of too few cases "
            "to tell which is better."
        )
    text += {1: "; better than", 0: "; not measurably better than", -1: "; worse than"}[
        words.side(against["ci95"])
    ]
    text += f" one grey-value threshold (Dice {words.signed(against['mean'])}"
    return f"{text} {words.interval(against['ci95'], sign=True)})."


def _place(run: Run) -> str:
    """The folder as one would type it: relative where it lies below the current one, or its address."""
    if remote.is_remote(place := remote.shown(run.workdir)):
        return place
    relative = os.path.relpath(run.workdir)
    return str(run.workdir) if relative.startswith("..") else relative


def verdicts(
    runs: Sequence[Run], scores: Sequence[Score], comparisons: Sequence[Comparison]
) -> list[Verdict]:
    """Did co-training help? One answer for each experiment and test set, never more than the data
    bear: a claim about the method needs several seeds and an interval without 0 over seeds AND over
    test cases."""
    answers = []
    for experiment, of_one in grouped(runs, lambda run: run.experiment):
        here = [
            c
            for c in comparisons
            if c.experiment == experiment and (c.a, c.b) == (CO_TRAINING, BASELINE)
        ]
        answers += [_verdict(c, of_one, scores) for c in here]
        if not here and any(CO_TRAINING in run.methods for run in of_one):
            answers.append(
                Verdict(
                    _title(experiment),
                    "open",
                    "No verdict yet.",
                    f"It takes test scores of both {CO_TRAINING} and {BASELINE} from the same run.",
                )
            )
    return answers


def _verdict(comparison: Comparison, runs: Sequence[Run], scores: Sequence[Score]) -> Verdict:
    cases, seeds = comparison.cases, comparison.seeds
    subject = f"{_title(comparison.experiment)}, test set {comparison.test_set}"
    if not cases["n"]:
        text = "There is no test case on which both methods have a Dice."
        return Verdict(subject, "open", "No verdict yet.", text)
    side = words.side(cases["ci95"])
    few = words.is_open(cases["ci95"])
    facts = f"Dice of {CO_TRAINING} minus {BASELINE}: {words.signed(cases['mean'])}"
    if few:
        facts += f" (paired, n = {cases['n']}), of {comparison.over}: too few for an interval."
    else:
        facts += (
            f", 95 % CI over test cases {words.interval(cases['ci95'], sign=True)} (paired, "
            f"n = {cases['n']}, bootstrap over {comparison.over})."
        )
    facts += _boundary(comparison.hd95, comparison.unit)
    if cases["num_units"] < 20:
        facts += " So few test cases can hardly tell methods apart."
    beaten = _beaten(comparison, scores)
    if seeds["n"] < 2:
        headline = (
            "One seed, and too few test cases for a verdict."
            if few
            else {
                1: f"One seed: {CO_TRAINING} scored higher than {BASELINE} on these test cases.",
                0: "One seed, no measurable difference.",
                -1: f"One seed: {CO_TRAINING} scored lower than {BASELINE}.",
            }[side]
        )
        advice = " Training it again may turn this round: train at least two more seeds before you "
        advice += "conclude anything about the method."
        tone = "open" if few else {1: "open", 0: "none", -1: "hurt"}[side]
        return Verdict(subject, tone, headline + beaten, facts + advice)
    facts += (
        f" Over {seeds['n']} seeds ({', '.join(comparison.seed_names)}): mean "
        f"{words.signed(seeds['mean'])}, sd {words.number(seeds['sd'])}, 95 % CI "
        f"{words.interval(seeds['ci95'], sign=True)}. {labelled_images(runs)}"
    )
    if few:
        headline = "Too few test cases for a verdict."
        return Verdict(subject, "open", headline + beaten, facts)
    side = side if side == words.side(seeds["ci95"]) else 0
    headline = {
        1: "Co-training helped.",
        0: "Co-training made no measurable difference.",
        -1: "Co-training hurt.",
    }[side]
    if side == 0:
        facts += " At least one of the two intervals contains 0."
    return Verdict(subject, {1: "helped", 0: "none", -1: "hurt"}[side], headline + beaten, facts)


def _boundary(hd95: Mapping, unit: str) -> str:
    """HD95 beside Dice: a method can win one and lose the other."""
    if not hd95["n"]:
        return ""
    if words.is_open(hd95["ci95"]):
        return f" HD95: {words.signed(hd95['mean'], 1)} {unit}, of too few cases for an interval."
    direction = {1: "worse", 0: "no measurable difference", -1: "better"}[words.side(hd95["ci95"])]
    ends = words.interval(hd95["ci95"], 1, sign=True)
    return f" HD95: {words.signed(hd95['mean'], 1)} {unit} {ends}, {direction}."


def _beaten(comparison: Comparison, scores: Sequence[Score]) -> str:
    """Whether a grey-value threshold does as well as either method."""
    names = []
    for method in (CO_TRAINING, BASELINE):
        found = [
            against_threshold(s)
            for s in scores
            if (s.experiment, s.test_set) == (comparison.experiment, comparison.test_set)
            and s.method == method
        ]
        means = [d["mean"] for d in found if d is not None and d["n"]]
        if means and np.mean(means) <= 0:
            names.append(method)
    if not names:
        return ""
    if len(names) == 2:
        return " Neither is better than one grey-value threshold: hand over neither."
    return f" {names[0]} is no better than one grey-value threshold: do not hand it over."


def labelled_images(runs: Sequence[Run]) -> str:
    """What differs between the seeds, after a look at their splits."""
    sentences = []
    for experiment, of_one in grouped(runs, lambda run: run.experiment):
        by_seed = {run.seed: run.splits for run in of_one}
        if len(by_seed) < 2:
            continue
        sides = [(set(s.get("train", ())), set(s.get("validation", ()))) for s in by_seed.values()]
        unions = [train | validation for train, validation in sides]
        pairs = list(itertools.combinations(range(len(sides)), 2))
        if not all(unions):
            text = "which images the seeds were trained on is not known."
        elif all(sides[i] == sides[j] for i, j in pairs):
            text = (
                f"all seeds have the same {len(unions[0])} labelled images, divided alike: they "
                "differ in initial weights, batches and augmentation only."
            )
        elif all(unions[i] == unions[j] for i, j in pairs):
            text = (
                f"all seeds have the same {len(unions[0])} labelled images, divided differently "
                "into training and validation: they are no draws of other images."
            )
        else:
            shared = np.mean([len(unions[i] & unions[j]) for i, j in pairs])
            text = (
                f"the seeds are draws of the labelled images; two of them share {shared:.1f} of "
                f"{np.mean([len(u) for u in unions]):.0f} on average."
            )
        sentences.append((experiment, text))
    if len({text for _, text in sentences}) == 1:
        text = sentences[0][1]
        return text[0].upper() + text[1:]
    return " ".join(f"{experiment.title}: {text}" for experiment, text in sentences)


def _title(experiment) -> str:
    return f"{experiment.title}, {experiment.labelled.split(' ')[0]} labelled images"

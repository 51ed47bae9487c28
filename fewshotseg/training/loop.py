"""The loop: a state, a step, and hooks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fewshotseg.runs import interrupts


class Turn(NamedTuple):
    """What the hooks are told after every turn of the loop.

    Attributes:
      state: after the turn.
      step: number of steps done.
      previous: number of steps done before the turn.
      num_steps: when the loop ends.
      metrics: of the turn, still on the device.
    """

    state: Any
    step: int
    previous: int
    num_steps: int
    metrics: dict


def fit(
    state: Any,
    advance: Callable,
    *,
    num_steps: int,
    step: int = 0,
    hooks: Sequence[Callable[[Turn], None]] = (),
    save: Callable[[Turn], None] | None = None,
) -> Any:
    """Advances a state to `num_steps`.

    Args:
      state: at `step`.
      advance: `(state, step) -> (state, metrics, number of steps taken)`.
      num_steps: when to end.
      step: where `state` is.
      hooks: called in order after every turn; see `every`.
      save: called with the last turn whose hooks have all been called, if there is an interrupt.

    Returns:
      The state at the end.

    Raises:
      KeyboardInterrupt: after `save`.
    """
    turn = Turn(state, step, step, num_steps, {})
    with interrupts.remembered_interrupts() as raise_if_interrupted:
        try:
            while turn.step < num_steps:
                state, metrics, taken = advance(turn.state, turn.step)
                latest = Turn(state, turn.step + taken, turn.step, num_steps, metrics)
                for hook in hooks:
                    hook(latest)
                turn = latest
                raise_if_interrupted()
        except KeyboardInterrupt:
            if save is not None:
                save(turn)
            raise
    return turn.state


def due(interval: int, turn: Turn) -> bool:
    """Whether the turn has passed a multiple of `interval`, or is the last."""
    return turn.step // interval != turn.previous // interval or turn.step >= turn.num_steps


def every(interval: int, action: Callable[[Turn], None]) -> Callable[[Turn], None]:
    """A hook that acts once in `interval` steps, and at the end."""

    def hook(turn):
        if due(interval, turn):
            action(turn)

    return hook

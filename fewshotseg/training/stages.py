"""The two trainings, ready to run: the generator alone, and the segmenter by one of the methods."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshotseg import hypergradient
from fewshotseg.genseg import levels, segmenter
from fewshotseg.methods import Method
from fewshotseg.models import factory
from fewshotseg.results import predictor
from fewshotseg.training import devices
from fewshotseg.training.state import TrainState

# Folded into the seed; never renumber.
STAGES = {"pretrain": 0, "train": 1, "init": 2, "search": 3, "synthesize": 4, "feedback": 5}
NUM_SAMPLES = 6  # rows of a picture of synthetic pairs


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training, ready to run: of the generator alone, or of the segmenter by one method.

    Attributes:
      name: 'generator' or a method; also of its folder.
      stage: 'pretrain' or 'train'.
      num_steps: its length.
      init: `players of the generator or None -> TrainState` at step 0.
      advance: `(state, step) -> (state, metrics, number of steps taken)`.
      kind: `step -> name of the program` that `advance` runs there; the first of each kind compiles.
      draw: `(state, one_hot_masks) -> images`, compiled; None where no generator alone makes the pairs.
      pairs: `state -> {source: Pairs}`, a few of every source, compiled; None where there are no others.
      segment: `(params, images) -> probabilities`, compiled; None where there is no segmenter.
      use: theta -> outer variables in use; None where theta does not move.
    """

    name: str
    stage: str
    num_steps: int
    init: Callable
    advance: Callable
    kind: Callable
    draw: Callable | None = None
    pairs: Callable | None = None
    segment: Callable | None = None
    use: Callable | None = None


class Parts(NamedTuple):
    """The pieces of one stage of one method.

    Attributes:
      family: players of the generator, and how they draw.
      sources: of synthetic pairs, name -> `make` (`pair_sources.create`).
      examples: of the segmenter, see `segmenter.create_examples`.
      networks: by player.
      theta: outer variables at their start.
      use: theta -> the outer variables in use.
      players: all of them.
      terms: of the outer loss.
      options: of `levels.player_gradient`.
      outer_optimizer: of theta.
    """

    family: levels.Family
    sources: Mapping[str, Callable]
    examples: Callable
    networks: Mapping[str, factory.Network]
    theta: Any
    use: Callable
    players: levels.Players
    terms: tuple
    options: Mapping[str, Any]
    outer_optimizer: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class OuterLoop:
    """When theta moves.

    Attributes:
      num_inner_steps: K, differentiated through; at most `every`.
      every: one hypergradient in so many inner steps.
      start: first inner step with one.
      through_generator: whether the path through the training of the generator's players counts.
    """

    num_inner_steps: int
    every: int
    start: int
    through_generator: bool

    def moves_theta(self, step: int) -> bool:
        return step >= self.start and step % self.every == 0

    def num_outer_steps(self, num_steps: int) -> int:
        """How many times theta moves in a training of `num_steps`."""
        return sum(self.moves_theta(step) for step in range(0, num_steps, self.every))


def step_key(seed: int, stage: str, step: int) -> jax.Array:
    """The key of a step: seed, stage and step fold into it, and nothing else."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STAGES[stage]), step)


def init_family(parts: Parts, seed: int) -> levels.State:
    """Untrained players of the generator."""
    names = [name for name in parts.networks if name != "segmenter"]
    keys = jax.random.split(step_key(seed, "init", 1), len(names))
    return {
        name: levels.init_player(parts.networks[name].init(key), parts.players[name])
        for name, key in zip(names, keys, strict=True)
    }


def init_segmenter(parts: Parts, seed: int) -> levels.PlayerState:
    """Untrained segmenter; the same for every method of one seed."""
    params = parts.networks["segmenter"].init(step_key(seed, "init", 2))
    return levels.init_player(params, parts.players["segmenter"])


def init_state(players: levels.State, parts: Parts) -> TrainState:
    """Puts the pieces together at step 0."""
    return TrainState(players, parts.theta, parts.outer_optimizer.init(parts.theta), jnp.int32(0))


def moving_players(parts: Parts, method: Method) -> tuple[str, ...]:
    """Who moves in an inner step, in order."""
    return (*(parts.family.players if method.trains_generator else ()), "segmenter")


def create_inner_step(
    parts: Parts, moving: tuple[str, ...], through_generator: bool = True
) -> Callable:
    """Phi: the step that trains, and the one that is differentiated."""
    through = None if through_generator else ("segmenter",)
    step = functools.partial(
        levels.inner_step, players=parts.players, moving=moving, through=through, **parts.options
    )
    return jax.jit(step)  # traced once for all programs that have it in them


def pretraining(
    parts: Parts,
    draw_batches: Callable,
    train: Mapping[str, np.ndarray],
    num_steps: int,
    seed: int,
    draw_samples: Callable | None = None,
) -> Stage:
    """The players of the generator on real pairs, before anything else (level 1 alone).

    Args:
      parts: of the stage 'pretrain'.
      draw_batches: `(arrays, keys [K]) -> batches`.
      train: arrays of the training cases.
      num_steps: its length.
      seed: of the experiment.
      draw_samples: see `training`.
    """
    arrays = _on_device(train)
    step = _compile(create_inner_step(parts, tuple(parts.family.players)))

    def advance(state, number):
        keys = step_key(seed, "pretrain", number)[None]
        players, metrics = step(state.players, state.theta, draw_batches(arrays, keys), keys, 0)
        return state.replace(players=players, step=state.step + 1), metrics, 1

    return Stage(
        name="generator",
        stage="pretrain",
        num_steps=num_steps,
        init=lambda players: init_state(init_family(parts, seed), parts),
        advance=advance,
        kind=lambda number: "generator step",
        draw=None if parts.sources else _compile_draw(parts),
        pairs=_compile_pairs(parts, draw_samples, arrays, seed) if parts.sources else None,
    )


def training(
    name: str,
    method: Method,
    parts: Parts,
    outer: OuterLoop,
    draws: tuple[Callable, Callable],
    arrays: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    create_estimate: Callable,
    num_steps: int,
    seed: int,
    draw_samples: Callable | None = None,
    start_estimate: Callable = lambda theta, players: (),
) -> Stage:
    """The segmenter, with the generator as the method says.

    Args:
      name: of the method.
      method: its row.
      parts: of the stage 'train'.
      outer: when theta moves.
      draws: `draw(arrays, keys [K])` and `draw_outer(arrays, key)`.
      arrays: of the training and of the validation cases, as the two draws take them.
      create_estimate: `(inner step, compiled inner step) -> estimate` of `hypergradient`.
      num_steps: its length.
      seed: of the experiment.
      draw_samples: `(arrays, key) -> batch` of which sources of pairs show samples.
      start_estimate: `(theta, players) -> carry`, the memory of the estimator before its first estimate.
    """
    draw_batches, draw_outer = draws
    train, validation = map(_on_device, arrays)
    inner_step = create_inner_step(parts, moving_players(parts, method), outer.through_generator)
    step = _compile(inner_step)
    online = bool(parts.theta) and method.moves_theta
    estimate = create_estimate(inner_step, step) if online else None

    def moves_theta(number):
        return online and outer.moves_theta(number)

    @jax.jit
    def update(grad, opt, theta):
        updates, opt = parts.outer_optimizer.update(grad, opt, theta)
        return optax.apply_updates(theta, updates), opt, optax.tree.norm(grad)

    def advance(state, number):
        count = min(outer.num_inner_steps if moves_theta(number) else 1, num_steps - number)
        keys = jnp.stack([step_key(seed, "train", number + k) for k in range(count)])
        drawn = draw_batches(train, keys)
        if not moves_theta(number):
            players, metrics = step(state.players, state.theta, drawn, keys, 0)
            return state.replace(players=players, step=state.step + 1), metrics, 1
        unseen = draw_outer(validation, keys[0])
        memory = (state.carry,) if jax.tree.leaves(state.carry) else ()
        result = estimate(state.theta, state.players, drawn, unseen, keys, *memory)
        theta, theta_opt, norm = update(result.grad, state.theta_opt, state.theta)
        metrics = {**result.metrics, "outer/hypergradient_norm": norm}
        state = TrainState(result.inner_state, theta, theta_opt, state.step + count, result.carry)
        return state, metrics, count

    by_generator = tuple(parts.sources) == ("generator",)
    shows_pairs = method.sources and not by_generator

    def init(players):
        state = init_state({**(players or {}), "segmenter": init_segmenter(parts, seed)}, parts)
        if not online:
            return state
        return state.replace(carry=start_estimate(state.theta, state.players))

    return Stage(
        name=name,
        stage="train",
        num_steps=num_steps,
        init=init,
        advance=advance,
        kind=lambda number: "outer step" if moves_theta(number) else "inner step",
        draw=_compile_draw(parts) if by_generator else None,
        pairs=_compile_pairs(parts, draw_samples, train, seed) if shows_pairs else None,
        segment=predictor.compile_segmenter(parts.networks["segmenter"].apply),
        use=parts.use if parts.theta else None,
    )


def _compile(inner_step):
    return devices.compile_step(hypergradient.indexed(inner_step), batched_args=(2,))


def _on_device(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, dict(arrays))


def _compile_draw(parts: Parts) -> Callable:
    @jax.jit
    def draw(state, masks):
        return parts.family.draw(state.players, state.theta, masks, None)

    return draw


def _compile_pairs(parts: Parts, draw_samples, arrays, seed) -> Callable:
    """`state -> {source: Pairs}`: what every source makes of the same few examples."""

    @jax.jit
    def make(state, batch):
        keys = levels.example_keys(batch, segmenter.SYNTHETIC_NOISE)
        args = state.players, state.theta, batch, keys
        return {name: make(*args) for name, make in parts.sources.items()}

    def pairs(state):
        made = make(state, draw_samples(arrays, step_key(seed, "train", 0)))
        return {name: made[name] for name in parts.sources}

    return pairs

r"""The method: the three levels of GenSeg as pure steps (Zhang et al., Nat. Commun. 2025).

    A* = argmin_A L_seg(S*(G*(A)), D_val)                                  outer_loss
    S* = argmin_S L_seg(S, D_tr) + gamma L_seg(S, synth(G*(A), A, D_tr))    the player 'segmenter'
    G* = argmin_G L_gen(G, A, D_tr)                                        the players of a generator family

A: theta, the outer variables; G and S: weights of the generator and of the segmenter. Every player is
trained by a loss of its own; `inner_step` lets them move one after the other, each seeing what those before
it have become, and an estimator of `hypergradient` differentiates the outer loss through K inner steps with
respect to theta. A generator family (a GAN, a diffusion model, a VAE) is a table of players and a way to
draw: see `gan.py`. Nothing in this file knows which one it is, nor what theta holds.

A path from theta to the validation loss runs through the synthetic images the segmenter is trained on; a
second one through the training of the generator's own players. Nothing on either is detached, rounded or
thresholded. The validation images reach only `outer_loss`: they never update a player.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from fewshotseg.hypergradient import Stationarity, inner_gradient, mean_over_devices
from fewshotseg.types import Batch, Params, PRNGKey, Theta


@dataclasses.dataclass(frozen=True)
class Player:
    """One network in training.

    Attributes:
      loss: `(params, outer, data) -> (loss, metrics)`. All that depends on theta or on other players comes
        in through `outer`, floating point arrays only; what does not, through `data`.
      inputs: `(state, theta, batch) -> (outer, data)`.
      optimizer: optax transformation; one that can be differentiated if the step is (see
        `training/optimizers.py`).
      average_decay: of the running average of the weights; 0 keeps none.
    """

    loss: Callable
    inputs: Callable
    optimizer: optax.GradientTransformation
    average_decay: float = 0.0


@flax.struct.dataclass
class PlayerState:
    """What a player carries from step to step.

    Attributes:
      params: its weights.
      opt: state of its optimiser.
      average: running average of the weights since the first step; None if it is not kept.
      steps: int32 scalar, number of steps taken.
    """

    params: Params
    opt: Any
    average: Params | None
    steps: jax.Array


def average_of(player: PlayerState) -> Params:
    """Weights to predict with: the average, or the current ones where none is kept."""
    return player.params if player.average is None else player.average


Players = Mapping[str, Player]
State = Mapping[str, PlayerState]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of generators.

    Attributes:
      players: in the order in which they move; the names become keys of the state.
      draw: `(state, theta, one_hot_masks, keys [B] or None) -> images [B, *spatial, C]` in [-1, 1],
        differentiable in the weights and in theta; without keys, the same image every time.
      refine: `(state, theta, images, one_hot_masks, keys) -> images`, likewise.
      sample: `(state, theta, keys [B]) -> images, class ids [B, *spatial]`: pairs from nothing. The images
        are differentiable, likewise; the masks are data.

    A family has one of them, or more; the sources of pairs (`pair_sources.py`) call them.
    """

    players: Players
    draw: Callable | None = None
    refine: Callable | None = None
    sample: Callable | None = None


def init_player(params: Params, player: Player) -> PlayerState:
    """A player that has not moved yet."""
    average = jax.tree.map(jnp.copy, params) if player.average_decay else None
    return PlayerState(params, player.optimizer.init(params), average, jnp.int32(0))


def player_gradient(
    name: str,
    state: State,
    theta: Theta,
    batch: Batch,
    *,
    players: Players,
    gradient: Callable = inner_gradient.mixed,
    axis_name: str | None = None,
) -> tuple[Params, dict]:
    """Gradient of one player's loss with respect to its weights; can be differentiated once more.

    Args:
      name: of the player.
      state: of all players.
      theta: outer variables.
      batch: see `inner_step`.
      players: the table.
      gradient: from `hypergradient.inner_gradient`: how the gradient itself is differentiated.
      axis_name: of the devices to average over, None for one.

    Returns:
      The gradient, and the player's metrics.
    """
    player = players[name]
    outer, data = player.inputs(state, theta, batch)
    (_, metrics), grads = gradient(player.loss)(state[name].params, outer, data)
    return mean_over_devices((grads, metrics), axis_name)


def move(player: Player, state: PlayerState, grads: Params) -> PlayerState:
    """One update of one player.

    The average over t steps is `sum_i d^(t-i) w_i / sum_i d^(t-i)`: it holds nothing of the weights
    before the first step, as a plain exponential average does (d^t of it).
    """
    updates, opt = player.optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    average, decay = state.average, player.average_decay
    if average is not None:
        share = (1.0 - decay) / (1.0 - decay ** (state.steps + 1))
        average = jax.tree.map(lambda a, p: a + share.astype(p.dtype) * (p - a), average, params)
    return PlayerState(params, opt, average, state.steps + 1)


def inner_step(
    state: State,
    theta: Theta,
    batch: Batch,
    rng: PRNGKey,
    *,
    players: Players,
    moving: Sequence[str],
    through: Sequence[str] | None = None,
    **options,
) -> tuple[State, dict]:
    """One update of every moving player, in turn: Phi of `hypergradient`.

    Args:
      state: of all players; a player that neither moves nor is looked at may be missing.
      theta: outer variables.
      batch: 'image' `[B, *spatial, C]` in [-1, 1], 'mask' `[B, *spatial]`, 'synthetic_mask'
        `[B', *spatial]` if the segmenter draws, 'key' `[B]`, one per example.
      rng: unused; all randomness comes from `batch['key']`.
      players: the table.
      moving: names, in the order in which they move.
      through: names of the players whose new weights a derivative with respect to theta may follow;
        None: all. The step itself is the same.
      **options: `gradient` and `axis_name` of `player_gradient`.

    Returns:
      The new state, and the metrics of all that moved.
    """
    del rng
    metrics = {}
    for name in moving:
        grads, more = player_gradient(name, state, theta, batch, players=players, **options)
        after = move(players[name], state[name], grads)
        if through is not None and name not in through:
            after = jax.lax.stop_gradient(after)
        state, metrics = {**state, name: after}, {**metrics, **more}
    return state, metrics


def outer_loss(
    state: State,
    theta: Theta,
    batch: Batch,
    *,
    terms: Sequence[tuple[float, Callable]],
) -> tuple[jax.Array, dict]:
    """Sum of weighted terms; the first is the validation loss V(S), level 3.

    Args:
      state: of all players.
      theta: outer variables.
      batch: validation images, see the terms.
      terms: pairs of a weight and `(state, theta, batch) -> (loss, metrics)`, each a mean over devices
        once it is averaged.
    """
    total, metrics = 0.0, {}
    for weight, term in terms:
        loss, more = term(state, theta, batch)
        total, metrics = total + weight * loss, {**metrics, **more}
    return total, {**metrics, "outer/loss": total}


def stationarity(*, players: Players, moving: Sequence[str], **options) -> Stationarity:
    """The inner problem as an equation: the gradients of all `moving` players, at one state, are zero.

    With the segmenter alone the Hessian is symmetric; with the generator's players in `moving` the path
    through their training counts too.

    Args:
      players: the table.
      moving: names.
      **options: `gradient` and `axis_name` of `player_gradient`.
    """

    def gradient(state, theta, batch, rng):
        del rng
        return {
            name: player_gradient(name, state, theta, batch, players=players, **options)[0]
            for name in moving
        }

    def update(grads, state):
        return {
            name: players[name].optimizer.update(g, state[name].opt, state[name].params)[0]
            for name, g in grads.items()
        }

    def replace(state, weights):
        return {**state, **{n: state[n].replace(params=w) for n, w in weights.items()}}

    return Stationarity(
        weights=lambda state: {name: state[name].params for name in moving},
        replace=replace,
        gradient=gradient,
        update=update,
    )


def example_keys(batch: Batch, purpose: int) -> jax.Array:
    """One key per example `[B]` for one purpose; another purpose gives keys that are independent."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(batch["key"])

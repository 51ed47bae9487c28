"""The step that trains is the step that is differentiated, and theta moves when it should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from fewshotseg.data import augment, batches
from fewshotseg.methods import METHODS
from fewshotseg.models.factory import Network
from fewshotseg.runs import checkpoint
from fewshotseg.training import devices, estimators, stages

K = 2


def _stage(name, every, estimator="unrolled", fields=None, **options):
    """A training of toy networks: 4 steps, one hypergradient through two steps every `every` steps."""
    method = METHODS[name]
    toy = tiny.make_toy_method(learning_rate=0.1, axis_name=devices.AXIS_NAME, draws=method.draws)
    theta, players, *_ = tiny.make_toy_problem(toy, 1, dtype=np.float32)
    networks = {
        player: Network(lambda key, p=state.params: p, tiny.TOYS[player])
        for player, state in players.items()
    }
    parts = stages.Parts(
        family=toy.family,
        sources=toy.sources,
        examples=None,
        networks=networks,
        theta=theta if method.moves_theta else {},
        use=toy.use,
        players=toy.players,
        terms=toy.terms,
        options=toy.options,
        outer_optimizer=optax.sgd(10.0),
    )
    cases = tiny.make_batch(np.random.default_rng(1), (6,), 4, np.float32)
    cases = {name: cases[name] for name in ("image", "mask")}

    def draw_one(data, key):
        return batches.draw_batch(
            data,
            key,
            batch_size=2,
            num_synthetic=2 if method.draws else 0,
            geometry=None,
            mask_geometry=augment.Geometry(),
            num_classes=2,
            axis_name=devices.AXIS_NAME,
        )

    def draw_outer(data, key):
        return batches.draw_outer_batch(data, key, batch_size=2, axis_name=devices.AXIS_NAME)

    draws = (
        devices.compile_draw(lambda data, keys: jax.lax.map(lambda k: draw_one(data, k), keys)),
        devices.compile_draw(draw_outer),
    )

    def create_estimate(inner_step, step):
        return estimators.create_estimator(
            estimator,
            fields or {},
            inner_step,
            toy.outer_loss(),
            axis_name=devices.AXIS_NAME,
            compile=devices.compile_step,
            step=step,
        )

    if fields:
        options["start_estimate"] = functools.partial(estimators.start, estimator, fields)
    outer = stages.OuterLoop(num_inner_steps=K, every=every, start=0, through_generator=True)
    stage = stages.training(
        name, method, parts, outer, draws, (cases, cases), create_estimate, 4, seed=0, **options
    )
    family = {n: p for n, p in players.items() if n != "segmenter"} if method.draws else None
    state = stage.init(family)
    if method.draws and not method.moves_theta:  # theta is fixed: the toy has no start of its own
        state = state.replace(theta=theta)
    return stage, state


@functools.cache
def _shared(name):
    """A stage of several tests, whose programs are compiled once."""
    return _stage(name, every=4)


@functools.cache
def _after_an_outer_step():
    stage, start = _shared("end2end")
    return stage.advance(start, 0)


def _after_inner_steps(stage, state):
    for step in range(K):
        state, _, taken = stage.advance(state, step)
        assert taken == 1
    return state


def test_an_outer_step_takes_the_inner_steps_that_train():
    with_outer, start = _shared("end2end")
    assert [with_outer.kind(step) for step in range(3)] == ["outer step", *["inner step"] * 2]
    after, metrics, taken = _after_an_outer_step()
    assert taken == K and int(after.step) == K
    state = _after_inner_steps(_shared("joint")[0], start)
    assert state.players.keys() == {"discriminator", "generator", "segmenter"}
    for name, player in state.players.items():
        assert tiny.distance(after.players[name].params, player.params) < 1e-5, name
    assert metrics["outer/hypergradient_norm"] > 0
    moved = tiny.distance(after.theta, start.theta)
    assert moved > 1e-4 and tiny.distance(state.theta, start.theta) == 0


def test_another_order_of_the_players_would_be_found(monkeypatch):
    """What the test above is worth: the compiled step with its players turned round is another step."""
    compiled = stages._compile

    def turned(inner_step):
        step = inner_step.__wrapped__  # of `jax.jit`
        *others, last = step.keywords["moving"]
        return compiled(functools.partial(step, moving=(last, *others)))

    monkeypatch.setattr(stages, "_compile", turned)
    plain, _ = _stage("joint", every=4)
    monkeypatch.undo()
    after, _, _ = _after_an_outer_step()
    state = _after_inner_steps(plain, _shared("end2end")[1])
    distance = tiny.distance(after.players["segmenter"].params, state.players["segmenter"].params)
    assert distance > 1e-4


def test_the_memory_of_an_estimator_outlives_the_process(tmp_path):
    """Of two hypergradients, the second after a restart from the checkpoint of the first: the same bits."""
    fields = {"num_pairs": 1, "sigma": 0.1, "num_unrolls": 5}
    stage, start = _stage("end2end", K, "pes", fields)
    first, _, _ = stage.advance(start, 0)
    second, _, _ = stage.advance(first, K)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(K, jax.device_get(first), {"w": np.ones(1)}, {})
    restored, _, _ = checkpoints.restore(start, K)
    checkpoints.close()
    again, _, _ = stage.advance(restored, K)
    jax.tree.map(np.testing.assert_array_equal, again, second)
    assert int(second.carry.unrolls) == 2
    forgetful, _, _ = stage.advance(first.replace(carry=start.carry), K)
    assert tiny.distance(forgetful.theta, second.theta) > 1e-4


def test_theta_moves_downhill():
    """One big step against the hypergradient, then the same two inner steps: V is lower."""
    stage, start = _shared("end2end")
    moved, metrics, _ = _after_an_outer_step()
    again, better, _ = stage.advance(start.replace(theta=moved.theta), 0)
    assert float(better["outer/loss"]) < float(metrics["outer/loss"])


def test_steps_do_not_depend_on_theta_where_nothing_is_drawn():
    stage, state = _stage("real_only", every=4)
    assert state.theta == {} and state.players.keys() == {"segmenter"}
    state, metrics, _ = stage.advance(state, 0)
    assert metrics.keys() == {"segmenter/loss", "segmenter/real_loss"}
    assert stage.draw is None and stage.use is None


def test_keys_of_steps_are_pure_functions_of_seed_stage_and_step():
    found = {
        tuple(np.asarray(jax.random.key_data(stages.step_key(seed, stage, step))))
        for seed in (0, 1)
        for stage in stages.STAGES
        for step in range(5)
    }
    assert len(found) == 2 * len(stages.STAGES) * 5
    again = stages.step_key(1, "train", 4)
    assert again == stages.step_key(1, "train", 4)
    assert jnp.issubdtype(again.dtype, jax.dtypes.prng_key)


def test_a_step_is_traced_once_also_when_its_state_comes_from_elsewhere():
    """The first state lies on one device, later ones as the step left them, a restored one on the host."""
    traced = []

    def step(state, batch):
        traced.append(1)
        return jax.tree.map(lambda x: x + batch.mean().astype(x.dtype), state)

    compiled = devices.compile_step(step, batched_args=(1,))
    batch = jnp.ones((jax.local_device_count(), 4))
    state = {"weights": jnp.zeros(3), "steps": jnp.int32(0)}
    for _ in range(3):
        state = compiled(state, batch)
    state = compiled(jax.device_get(state), batch)
    np.testing.assert_array_equal(state["weights"], [4.0] * 3)
    assert int(state["steps"]) == 4 and len(traced) == 1

"""From a configuration to the objects of one experiment. Below this file, nothing sees a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshotseg import (
    augment,
    errors,
    evolution,
    genseg,
    hypergradient,
    implicit,
    inner_gradient,
    model_factory,
    optimizers,
    parallel,
)
from fewshotseg import state as state_lib
from fewshotseg.data import folder, input_pipeline, phantom, splits
from fewshotseg.models import generator as generator_lib
from fewshotseg.models import layers, search_space
from fewshotseg.types import CaseSource

METHODS = ("real_only", "separate", "joint", "end2end")
TEST_FRACTION = 0.2  # of the cases, where nothing else says which ones test
# Estimator of the hypergradient -> how it has the inner gradient differentiated.
ESTIMATORS = {
    "mixed_mode": "mixed",
    "unrolled": "reverse",
    "truncated": "mixed",
    "one_step": "mixed",
    "finite_difference": "finite_difference",
    "identity": "mixed",
    "neumann": "mixed",
    "conjugate_gradient": "mixed",
    "sama": "finite_difference",
    "evolution_strategies": "mixed",
}
STAGES = {"pretrain": 0, "train": 1, "init": 2}  # folded into the seed; never renumber


@dataclasses.dataclass(frozen=True)
class Data:
    """The cases of an experiment.

    Attributes:
      source: where they come from.
      split: ids of the training, validation and test cases.
      train: arrays of the training cases, see `input_pipeline.load_arrays`.
      validation: likewise.
      test_sets: name -> (source, ids).
    """

    source: CaseSource
    split: splits.Split
    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test_sets: Mapping[str, tuple[CaseSource, tuple[str, ...]]]

    @property
    def num_classes(self) -> int:
        """Background included."""
        return len(self.source.class_names) + 1


def create_source(config, strict: bool = True) -> CaseSource:
    """The source that `config.source` names.

    Args:
      config: a `source_config()` of configs/default.py.
      strict: raise the first fault of a folder; otherwise it is kept in the source's `faults`.

    Raises:
      InputError: an unknown source, or whatever is wrong with its files.
    """
    if config.source == "phantom":
        return phantom.PhantomSource(**config.phantom.to_dict())
    if config.source == "folder":
        fields = config.folder.to_dict()
        for field in ("images_dir", "masks_dir"):
            if not fields[field]:
                raise errors.InputError(
                    f"data.folder.{field} is empty: give --config.data.folder.{field}=FOLDER."
                )
            fields[field] = fields[field].split(",")
        fields["include"] = fields["include"] or None
        fields["group_pattern"] = fields["group_pattern"] or None
        return folder.FolderSource(**fields, strict=strict)
    if config.source == "tfds":
        from fewshotseg.data import datasets  # slow to import

        return datasets.TfdsSource(**config.tfds.to_dict())
    raise errors.InputError(f"data.source is {config.source!r}: use 'phantom', 'folder' or 'tfds'.")


def create_split(config, source: CaseSource) -> splits.Split:
    """Few-shot split of the seed, or the lists of `data.split_file`."""
    fields = config.data
    lists = fields.split_file or None
    draw = functools.partial(
        splits.few_shot_split,
        source,
        seed=config.seed,
        lists=lists,
        test_fraction=TEST_FRACTION,
    )
    if fields.num_train:
        split = draw(num_train=fields.num_train, num_validation=fields.num_validation)
    else:
        split = _draw_all(draw, source, lists)
    if fields.num_test:
        split = dataclasses.replace(split, test=spread(split.test, fields.num_test))
    return split


def spread(ids: tuple[str, ...], number: int) -> tuple[str, ...]:
    """At most `number` of `ids`, evenly spaced: the first ones may all be of one kind."""
    number = min(number, len(ids))
    return tuple(ids[i * len(ids) // number] for i in range(number))


def _draw_all(draw, source, lists, tries=5):
    """Takes as many labelled cases as there are; look-alikes of test cases may reduce the number."""
    if lists:
        raise errors.InputError("data.num_train is 0: with data.split_file, give numbers.")
    free = len(source.ids) - round(TEST_FRACTION * len(source.ids))
    for left in range(tries, 0, -1):
        num_validation = max(1, free // 5)
        try:
            return draw(num_train=free - num_validation, num_validation=num_validation)
        except errors.InputError:
            if left == 1:
                raise
        free = free - max(1, free // 10)


def create_data(config) -> Data:
    """Draws the few-shot split and loads the training and validation cases."""
    source = create_source(config.data)
    split = create_split(config, source)
    size, channels = config.data.image_size, config.data.channels
    train = input_pipeline.load_arrays(source, split.train, size, channels)
    validation = input_pipeline.load_arrays(source, split.validation, size, channels)
    if not train["mask"].any():
        raise errors.InputError(
            f"none of the {len(split.train)} training masks of {source.name} has any foreground: "
            "check the masks with --mode=check."
        )
    test_sets = {"test": (source, split.test)}
    for name, test_config in config.test_sets.items():
        test_source = create_source(test_config)
        ids = test_source.official_splits.get("test", test_source.ids)
        test_sets[name] = (test_source, tuple(ids))
    return Data(source, split, train, validation, test_sets)


def check_config(config) -> None:
    """Checks what the types of the fields do not.

    Raises:
      InputError: names the field, the value and what is allowed.
    """
    unknown = [m for m in config.methods if m not in METHODS]
    if unknown or not config.methods:
        raise errors.InputError(f"methods is {config.methods!r}: use any of {', '.join(METHODS)}.")
    if config.data.image_size < 16:
        raise errors.InputError(f"data.image_size is {config.data.image_size}: use at least 16.")
    num_train, num_validation = config.data.num_train, config.data.num_validation
    if min(num_train, num_validation) < 1 and (num_train, num_validation) != (0, 0):
        raise errors.InputError(
            f"data.num_train is {num_train} and data.num_validation {num_validation}: use at least 1 "
            "each, or 0 for both."
        )
    if config.data.channels not in (1, 3):
        raise errors.InputError(f"data.channels is {config.data.channels}: use 1 or 3.")
    if config.loss.overlap not in ("dice", "jaccard"):
        raise errors.InputError(
            f"loss.overlap is {config.loss.overlap!r}: use 'dice' or 'jaccard'."
        )
    if config.loss.adversarial not in ("vanilla", "lsgan"):
        raise errors.InputError(
            f"loss.adversarial is {config.loss.adversarial!r}: use 'vanilla' or 'lsgan'."
        )
    outer = config.outer
    unknown = [name for name in config.diagnose.estimators if name not in ESTIMATORS]
    if unknown or not config.diagnose.estimators:
        raise errors.InputError(
            f"diagnose.estimators has {unknown}: use some of {', '.join(ESTIMATORS)}."
        )
    if not config.diagnose.inner_steps or min(config.diagnose.inner_steps) < 1:
        raise errors.InputError("diagnose.inner_steps must be numbers of at least 1.")
    if config.diagnose.repeats < 1:
        raise errors.InputError("diagnose.repeats must be at least 1.")
    choices = {
        "estimator": tuple(ESTIMATORS),
        "remat": ("none", "step", "sqrt"),
        "loop": ("auto", "host", "scan"),
    }
    for field, allowed in choices.items():
        if outer[field] not in allowed:
            raise errors.InputError(f"outer.{field} is {outer[field]!r}: use one of {allowed}.")
    unknown = set(outer.variables) - {"architecture", "synthetic_weight"}
    if unknown:
        raise errors.InputError(
            f"outer.variables has {sorted(unknown)}: use 'architecture' and 'synthetic_weight'."
        )
    if not 1 <= outer.num_inner_steps <= outer.every:
        raise errors.InputError(
            f"outer.num_inner_steps is {outer.num_inner_steps}: it must be between 1 and "
            f"outer.every={outer.every}."
        )
    if outer.estimator == "conjugate_gradient" and outer.through_generator_training:
        raise errors.InputError(
            "outer.estimator is 'conjugate_gradient', which needs a symmetric Hessian: set "
            "outer.through_generator_training=False, or use 'neumann'."
        )
    for field in ("horizon", "radius", "step_size", "num_terms", "num_pairs", "sigma"):
        if outer[field] <= 0:
            raise errors.InputError(f"outer.{field} is {outer[field]}: it must be above 0.")
    if outer.damping < 0:
        raise errors.InputError(f"outer.damping is {outer.damping}: it must be at least 0.")
    for block in ("pretrain", "train", "outer"):
        parallel.check_batch_size(f"{block}.batch_size", config[block].batch_size)


def create_networks(config, num_classes: int) -> dict[str, Any]:
    """Generator, discriminator and segmenter modules."""
    fields = dict(config.generator)
    fields["num_levels"] = generator_lib.max_levels(config.data.image_size, fields["num_levels"])
    num_outputs = 1 if num_classes == 2 else num_classes
    return {
        "generator": model_factory.create_generator(fields, config.data.channels),
        "discriminator": model_factory.create_discriminator(dict(config.discriminator)),
        "segmenter": model_factory.create_segmenter(dict(config.segmenter), num_outputs),
    }


def _optimizer(config, num_steps, factor=1.0):
    fields = config.to_dict()
    rate = fields.pop("learning_rate") * factor
    return optimizers.create_optimizer(fields.pop("name"), rate, num_steps, **fields)


def create_method(config, networks: Mapping[str, Any], num_classes: int, method: str, stage: str):
    """`genseg.Method` for one stage of one method, and its outer optimiser."""
    pretraining = stage == "pretrain"
    num_steps = config[stage].num_steps
    gan_optimizer = _optimizer(
        config.gan_optim, num_steps, 1.0 if pretraining else config.gan_finetune_factor
    )
    gradient = inner_gradient.GRADIENTS[ESTIMATORS[config.outer.estimator]]
    if gradient is inner_gradient.finite_difference:
        gradient = functools.partial(gradient, radius=config.outer.radius)
    intensity = augment.Intensity(**config.augment.intensity.to_dict())
    bundle = genseg.Method(
        generate=lambda p, a, m, keys: networks["generator"].apply({"params": p}, m, a, keys),
        discriminate=lambda p, m, x: networks["discriminator"].apply({"params": p}, m, x),
        segment=lambda p, x: networks["segmenter"].apply({"params": p}, x),
        jitter=functools.partial(augment.jitter, strength=intensity),
        generator_optimizer=gan_optimizer,
        discriminator_optimizer=gan_optimizer,
        segmenter_optimizer=_optimizer(config.optim, num_steps),
        num_classes=num_classes,
        overlap=config.loss.overlap,
        adversarial=config.loss.adversarial,
        l1_weight=config.loss.l1_weight,
        synthetic_weight=0.0 if method == "real_only" else config.loss.synthetic_weight,
        ema_decay=config.train.ema_decay,
        gradient=gradient,
        axis_name=parallel.AXIS_NAME,
    )
    return bundle, _optimizer(config.outer_optim, num_steps)


def _keys(config, stage):
    return jax.random.fold_in(jax.random.key(config.seed), STAGES[stage])


def step_key(config, stage: str, step: int) -> jax.Array:
    """The key of a step: seed, stage and step fold into it, and nothing else."""
    return jax.random.fold_in(_keys(config, stage), step)


def init_theta(config, num_levels: int) -> dict[str, Any]:
    """Outer variables at their start."""
    sides = tuple(side for side in ("encoder", "decoder") if config.search[side])
    key = jax.random.fold_in(_keys(config, "init"), 0)
    theta = {"architecture": search_space.init_architecture(key, num_levels, sides)}
    if "synthetic_weight" in config.outer.variables:
        theta["synthetic_weight"] = jnp.float32(0.0)
    return theta


def init_gan(config, networks, method: genseg.Method) -> state_lib.GanState:
    """Untrained generator and discriminator."""
    size, channels = config.data.image_size, config.data.channels
    theta = init_theta(config, networks["generator"].num_levels)
    mask = jnp.zeros((1, size, size, method.num_classes - 1))
    image = jnp.zeros((1, size, size, channels))
    keys = jax.random.split(jax.random.fold_in(_keys(config, "init"), 1))

    @jax.jit
    def init(key_g, key_d):
        architecture = theta["architecture"]
        generator = layers.init_params(networks["generator"], key_g, mask, architecture, None)
        discriminator = layers.init_params(networks["discriminator"], key_d, mask, image)
        optimizers_ = method.generator_optimizer, method.discriminator_optimizer
        return state_lib.init_gan(generator, discriminator, *optimizers_)

    return init(*keys)


def init_segmenter(config, networks, method: genseg.Method) -> state_lib.SegmenterState:
    """Untrained segmenter; the same for every method of one seed."""
    image = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.channels))

    @jax.jit
    def init(key):
        params = layers.init_params(networks["segmenter"], key, image)
        return state_lib.init_segmenter(params, method.segmenter_optimizer)

    return init(jax.random.fold_in(_keys(config, "init"), 2))


def init_state(
    gan: state_lib.GanState | None,
    segmenter: state_lib.SegmenterState | None,
    theta: dict[str, Any],
    outer_optimizer: optax.GradientTransformation,
) -> state_lib.GenSegState:
    """Puts the pieces together at step 0."""
    inner = state_lib.InnerState(gan, segmenter)
    return state_lib.GenSegState(inner, theta, outer_optimizer.init(theta), jnp.int32(0))


def create_draws(
    config,
    num_classes: int,
    batch_size: int,
    axis_name: str | None = parallel.AXIS_NAME,
    compile: Callable = parallel.compile_draw,
):
    """`draw(data, keys [K])` and `draw_outer(data, key)`, compiled for all devices by default."""

    def geometry(fields):
        return augment.Geometry(**{**fields.to_dict(), "flip_axes": tuple(fields.flip_axes)})

    draw_one = functools.partial(
        input_pipeline.draw_batch,
        batch_size=batch_size,
        geometry=geometry(config.augment.real),
        mask_geometry=geometry(config.augment.mask),
        num_classes=num_classes,
        axis_name=axis_name,
    )
    draw_outer = functools.partial(
        input_pipeline.draw_outer_batch, batch_size=config.outer.batch_size, axis_name=axis_name
    )

    def draw(data, keys):
        return jax.lax.map(lambda key: draw_one(data, key), keys)

    return compile(draw), compile(draw_outer)


def create_estimator(
    config,
    method: genseg.Method,
    step: Callable | None = None,
    axis_name: str | None = parallel.AXIS_NAME,
    compile: Callable = parallel.compile_step,
) -> Callable:
    """The estimator `config.outer.estimator`, compiled for all devices by default.

    Args:
      config: the configuration.
      method: from `create_method`, for the method 'end2end'.
      step: the compiled inner step, if there is one already (see `hypergradient.unrolled`).
      axis_name: of the devices.
      compile: likewise.
    """
    outer = config.outer
    loop = outer.loop
    if loop == "auto":
        loop = "host" if jax.default_backend() == "cpu" else "scan"
    inner_step = functools.partial(
        genseg.inner_step, method=method, through_generator=outer.through_generator_training
    )
    stationarity = genseg.stationarity(
        method=method, through_generator=outer.through_generator_training
    )
    makers = {
        "mixed_mode": functools.partial(hypergradient.unrolled, remat=outer.remat),
        "unrolled": functools.partial(hypergradient.unrolled, remat=outer.remat),
        "truncated": functools.partial(
            hypergradient.truncated, horizon=outer.horizon, remat=outer.remat
        ),
        "one_step": hypergradient.one_step,
        "finite_difference": hypergradient.one_step,
        "identity": functools.partial(
            implicit.identity, stationarity=stationarity, step_size=outer.step_size
        ),
        "neumann": functools.partial(
            implicit.neumann,
            stationarity=stationarity,
            num_terms=outer.num_terms,
            step_size=outer.step_size,
        ),
        "conjugate_gradient": functools.partial(
            implicit.conjugate_gradient,
            stationarity=stationarity,
            num_terms=outer.num_terms,
            damping=outer.damping,
        ),
        "sama": functools.partial(implicit.sama, stationarity=stationarity),
        "evolution_strategies": functools.partial(
            evolution.evolution_strategies, num_pairs=outer.num_pairs, sigma=outer.sigma
        ),
    }
    return makers[outer.estimator](
        inner_step,
        functools.partial(genseg.outer_loss, method=method),
        loop=loop,
        axis_name=axis_name,
        compile=compile,
        step=step,
    )


def compile_segmenter(apply: Callable) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(params, images [B, S, S, C] in [-1, 1]) -> probabilities [B, S, S, K]`, compiled.

    Args:
      apply: `(params, images) -> logits [B, S, S, K]`.
    """

    @jax.jit
    def probabilities(params, images):
        logits = apply(params, images)
        return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)

    return lambda params, images: np.asarray(probabilities(params, images))

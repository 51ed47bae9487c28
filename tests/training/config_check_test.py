"""Every field of a configuration has a row, and what lies outside of it is refused in one sentence."""

import importlib
import math
import pathlib

import pytest

from configs import default, demo
from fewshotseg.errors import InputError
from fewshotseg.training import config_check, config_tables, optimizers

NAMES = sorted(p.stem for p in (pathlib.Path(__file__).parents[2] / "configs").glob("[!_]*.py"))


def load(name):
    arg = "isic2017" if name == "public" else ""
    return importlib.import_module(f"configs.{name}").get_config(arg)


def is_number(value):
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_exactly_one_row(name):
    for field, value in config_check.leaves(load(name)):
        found = [
            *config_check.rows(config_tables.BOUNDS, field),
            *config_check.rows(config_tables.NUMBER_CHOICES, field),
        ]
        if is_number(value):
            assert len(found) == 1, f"{field}: give it one row of BOUNDS, it has {found}"
        else:
            assert not config_check.rows(config_tables.BOUNDS, field), f"{field} is no number"


def test_a_new_number_would_be_missed():
    config = default.get_config()
    with config.unlocked():
        config.train.patience = 3
    assert not config_check.rows(config_tables.BOUNDS, "train.patience")
    assert ("train.patience", 3) in list(config_check.leaves(config))


@pytest.mark.parametrize("table", ["BOUNDS", "CHOICES"])
def test_every_row_is_about_some_field(table):
    fields = [field for name in NAMES for field, _ in config_check.leaves(load(name))]
    for row in getattr(config_check, table):
        assert any(config_check.rows((row,), field) for field in fields), f"{row} is about nothing"


def test_every_choice_has_at_most_one_row():
    for name in NAMES:
        for field, _ in config_check.leaves(load(name)):
            assert len(config_check.rows(config_tables.CHOICES, field)) <= 1, field


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_optimizers_offered_exist(name, schedule):
    optimizers.create_optimizer(name, 0.1, 10, schedule=schedule)
    assert name in config_tables.CHOICES["*optim.name"]
    assert schedule in config_tables.CHOICES["*optim.schedule"]


NONSENSE = [
    ("train.num_steps", 0), ("train.num_steps", -5), ("pretrain.num_steps", 0),
    ("optim.learning_rate", -1.0), ("optim.learning_rate", 0.0), ("optim.learning_rate", math.nan),
    ("gan_optim.learning_rate", math.inf), ("outer_optim.learning_rate", -math.inf),
    ("optim.warmup_steps", -1), ("optim.weight_decay", -0.1), ("gan_optim.b1", 1.0),
    ("optim.momentum", 1.5), ("optim.name", "adm"), ("optim.schedule", "cosin"),
    ("evaluate.threshold", 2.0), ("evaluate.threshold", math.nan), ("evaluate.threshold", 0.0),
    ("eval_every", -1), ("eval_every", 0), ("checkpoint_every", 0), ("checkpoint_every", -3),
    ("log_every", 0), ("sample_every", 0),
    ("augment.real.flip", 2.0), ("augment.mask.scale", -3.0), ("augment.real.shear", 90.0),
    ("augment.intensity.noise", math.nan), ("augment.real.flip_axes", (-4,)),
    ("evaluate.batch_size", 0), ("evaluate.batch_size", -4), ("train.batch_size", 0),
    ("train.batch_size", -1), ("pretrain.batch_size", 0), ("outer.batch_size", 0),
    ("segmenter.unet.width", 0), ("generator.pix2pix.width", -8), ("segmenter.unet.num_levels", -1),
    ("segmenter.unet.num_levels", 20), ("discriminator.patchgan.num_levels", 20),
    ("segmenter.unet.groups", 0),
    ("segmenter.unet.activation", "foo"), ("segmenter.unet.pool", "foo"), ("segmenter.unet.dtype", "int8"),
    ("segmenter.efficient_unet.trained", "thawed"), ("segmenter.efficient_unet.encoder_rate", -1.0),
    ("segmenter.efficient_unet.widths", (16, 3)), ("segmenter.efficient_unet.widths", ()),
    ("segmenter.name", "vnet"), ("data.source", "floder"), ("data.channels", 2),
    ("data.image_size", 8), ("data.num_test", -1), ("seed", 10**20), ("seed", -1),
    ("methods", ()), ("methods", ("end2edn",)), ("methods", ("joint", "joint")),
    ("data.folder.class_names", ()), ("data.folder.class_names", ("a", "a")),
    ("data.folder.class_ids", (0,)), ("data.folder.class_ids", (0, -3)),
    ("data.folder.class_ids", (4, 4)), ("data.folder.ignore_id", 1), ("data.folder.ignore_id", -2),
    ("data.folder.class_names", ("",)), ("outer.num_inner_steps", 0), ("outer.start", 10**6),
    ("outer.every", 0), ("outer.estimator", "neuman"), ("diagnose.inner_steps", ()),
    ("diagnose.inner_steps", (1, 0)), ("diagnose.repeats", 0), ("train.ema_decay", 1.0),
    ("test_sets.shifted.phantom.num_cases", 0), ("test_sets.shifted.source", "phantm"),
    ("pairs.sources", ()), ("pairs.sources", ("cutmix", "cutmix")), ("pairs.sources", ("mixup",)),
    ("pairs.blend_width", 0.0), ("pairs.residual_gain", 0.7), ("pairs.cutmix.largest_share", 1.5),
    ("family.gan.l1_weight", -1.0), ("loss.overlap", "iou"), ("gan_finetune_factor", math.nan),
]  # fmt: skip


@pytest.mark.parametrize("field, value", NONSENSE, ids=lambda v: str(v)[:24])
def test_nonsense_is_refused_and_named(field, value):
    config = demo.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as caught:
        config_check.check_config(config)
    assert str(caught.value).startswith(f"{field} is ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("outer.variables", ()), ("augment.real.flip_axes", ()), ("evaluate.threshold", 0.01),
        ("train.num_steps", 1), ("gan_finetune_factor", 0.0), ("seed", 2**32 - 1),
        ("segmenter.unet.num_levels", 6), ("augment.real.scale", 0.0),
    ],
)  # fmt: skip
def test_what_is_at_the_edge_is_allowed(field, value):
    config = demo.get_config()
    config.update_from_flattened_dict({field: value})
    config_check.check_config(config)


def test_sources_of_pairs_share_the_batch_evenly():
    config = demo.get_config("runlocal,method=real_only+mixture")
    config_check.check_config(config)  # 4 sources, 4 pairs
    config.pairs.sources = ("augmented", "cutmix", "copy_paste")
    with pytest.raises(InputError, match="train.batch_size=4 .* 3 sources of .* a multiple of 3"):
        config_check.check_config(config)
    config.methods = ("real_only", "end2end")
    config_check.check_config(config)  # neither mixes


def test_an_outer_loop_moves_something_that_matters():
    config = demo.get_config("runlocal,method=mixture_learned")
    config_check.check_config(config)
    config.outer.variables = ("architecture",)
    with pytest.raises(InputError, match="no difference to mixture_learned, .*'blend_width'.*"):
        config_check.check_config(config)
    config.pairs.sources = ("augmented", "generator")
    config_check.check_config(config)


def test_an_architecture_that_is_not_searched_does_not_move():
    config = demo.get_config("runlocal,method=end2end")
    config.search.encoder = False
    config_check.check_config(config)
    config.search.decoder = False
    with pytest.raises(InputError, match="outer.variables.*moves with search.encoder or"):
        config_check.check_config(config)


@pytest.mark.parametrize("name", ["evolution_strategies", "pes"])
def test_who_perturbs_trainings_goes_through_that_of_the_generator(name):
    config = demo.get_config(f"runlocal,method=end2end,estimator={name}")
    config.outer.num_inner_steps = config.outer.every
    config_check.check_config(config)
    config.outer.through_generator_training = False
    with pytest.raises(InputError, match=f"estimator is '{name}'.*through_generator_training=True"):
        config_check.check_config(config)


def test_a_bound_says_what_it_allows():
    assert str(config_tables.at_least(1)) == "at least 1"
    assert str(config_tables.above(0)) == "a number above 0"
    assert str(config_tables.between(0, 1)) == "a number between 0 and 1"
    open_ends = config_tables.between(0, 1, open_low=True, open_high=True)
    assert str(open_ends) == "a number between 0 (left out) and 1 (left out)"
    assert not open_ends.holds(0) and not open_ends.holds(1) and open_ends.holds(0.5)


def test_discriminators_need_room_for_their_scales():
    config = demo.get_config()  # 64 pixels
    config.discriminator.patchgan.num_scales = 2
    config_check.check_config(config)
    config.discriminator.patchgan.num_scales = 3
    with pytest.raises(InputError, match="num_scales is 3: with num_levels=3, 64 pixels have room"):
        config_check.check_config(config)
    config.discriminator.patchgan.num_levels = 5
    with pytest.raises(InputError, match="num_levels is 5: nothing is left of 64 .* at most 4"):
        config_check.check_config(config)
    config.discriminator.patchgan.num_levels = 2
    config_check.check_config(config)

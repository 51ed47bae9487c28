"""The embedded default: 40 labelled phantoms, four methods, a few minutes on a laptop's CPU.

python run.py

Expected: see "The demo" in README.md.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "demo"
    config.data.source = "phantom"
    config.data.image_size = 64
    config.data.num_test = 100
    with config.unlocked():
        config.test_sets.shifted = default.source_config()
    config.test_sets.shifted.source = "phantom"
    config.test_sets.shifted.phantom.shifted = True
    config.test_sets.shifted.phantom.seed = 1
    config.test_sets.shifted.phantom.num_cases = 100
    config.data.phantom.num_cases = 500
    config.segmenter.unet.width = 8
    config.generator.pix2pix.num_levels = 4
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 16, 64
    config.discriminator.patchgan.width = 16
    config.pretrain.num_steps = 200
    config.train.num_steps = 300
    config.pretrain.batch_size = config.train.batch_size = 4
    config.optim.learning_rate = 3e-3
    config.eval_every, config.sample_every, config.checkpoint_every = 20, 100, 100
    default.apply_choices(config, arg)
    return config

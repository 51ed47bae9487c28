"""40 labelled images of a public data set, at a size that two CPU cores train in minutes.

python benchmarks/fewshot.py --data_dir=FOLDER      all data sets, methods and seeds

Expected: the table "Few labels, real images" in README.md.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "fewshot"
    config.data.image_size = 64
    config.segmenter.unet.width = 8
    config.generator.pix2pix.num_levels = 4
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 16, 64
    config.discriminator.patchgan.width = 16
    config.pretrain.num_steps = 300
    config.train.num_steps = 400
    config.train.batch_size = config.pretrain.batch_size = 4
    config.optim.learning_rate = 3e-3
    config.log_every, config.eval_every = 10, 20
    config.sample_every, config.checkpoint_every = 200, 100
    default.apply_choices(config, arg)
    return config

"""40 labelled images of a public data set: configs/folder.py at 96 px, with every method beside it.

python benchmarks/fewshot.py --data_dir=FOLDER      all data sets, methods and draws
    --config=configs/fewshot.py:segmenter=unet      a U-Net from scratch in place of the pretrained encoder

Expected: docs/results.md, "Few labels, real images".
"""

from configs import default, folder


def get_config(arg=""):
    config = default.get_config()
    config.name = "fewshot"
    folder.small_generator(config)
    folder.pretrained_encoder(config)
    config.log_every, config.eval_every = 20, 100
    config.data.image_size = 96
    config.sample_every = config.checkpoint_every = 400
    default.apply_choices(config, arg)
    return config

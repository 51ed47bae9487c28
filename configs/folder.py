"""Your own images and masks: a folder of each, matched by name.

python run.py --mode=check --config=configs/folder.py --workdir=runs/mine \\
    --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks
python run.py --config=configs/folder.py --workdir=runs/mine \\
    --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks

A fifth of the cases is kept for the test; of the others, a fifth validates and the rest trains. Several
classes: --config.data.folder.class_names="('vessel','tool')", with mask values 1, 2. With a GPU, try
--config.data.image_size=256 and --config.segmenter.unet.width=32.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "folder"
    config.data.source = "folder"
    config.data.num_train = 0
    config.data.num_validation = 0
    config.generator.pix2pix.num_levels = 5
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 16, 64
    config.discriminator.patchgan.width = 16
    config.optim.learning_rate = 3e-3
    default.apply_choices(config, arg)
    return config

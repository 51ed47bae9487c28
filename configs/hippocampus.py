"""Hippocampus in MR: whole small volumes, two classes, from the Medical Segmentation Decathlon.

python run.py --config=configs/hippocampus.py --workdir=runs/hippocampus \\
    --config.data.volumes.folder=Task04_Hippocampus

The folder is the unpacked Task04_Hippocampus.tar (http://medicaldecathlon.com, CC BY-SA 4.0). Another
folder of small volumes: the same command; larger ones are squeezed to data.image_size too. Needs the
extra `volumes`. With the generator: `configs/hippocampus.py:method=real_only+separate+end2end`.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "hippocampus"
    config.methods = ("real_plain", "real_only")
    config.data.source = "volumes"
    config.data.volumes.name = "hippocampus"
    config.data.image_size = (24, 32, 24)  # of about 35 x 50 x 35 voxels of 1 mm
    config.data.channels = 1
    config.data.num_train, config.data.num_validation = 20, 20
    config.segmenter.unet.width, config.segmenter.unet.num_levels = 8, 3
    config.generator.pix2pix.num_levels = 3
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 8, 32
    config.discriminator.patchgan.width, config.discriminator.patchgan.num_levels = 8, 2
    config.optim.learning_rate = 3e-3
    config.pretrain.num_steps = 200
    config.train.num_steps = 200
    config.pretrain.batch_size = config.train.batch_size = config.outer.batch_size = 2
    config.evaluate.batch_size = 4
    config.eval_every, config.sample_every, config.checkpoint_every = 50, 100, 100
    default.apply_choices(config, arg)
    return config

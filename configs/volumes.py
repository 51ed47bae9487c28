"""Your own volumes: a folder of NIfTI files or DICOM series, in the layouts of docs/data.md.

python run.py --mode=check --config=configs/volumes.py --workdir=runs/mine \\
    --config.data.volumes.folder=FOLDER
python run.py --config=configs/volumes.py --workdir=runs/mine --config.data.volumes.folder=FOLDER
python run.py --mode=predict --workdir=runs/mine --input=new --output=predicted

A fifth of the cases is kept for the test; of the others, a fifth validates and the rest trains. Volumes
are squeezed to data.image_size: the smallest object should keep a few voxels; large volumes go through in
tiles with --config.data.fit=tiles. In CT, give a window, as in
--config.data.volumes.window="(-160.0,240.0)". With the generator:
--config=configs/volumes.py:method=real_only+end2end. Needs the extra `volumes`.
"""

from configs import default

LIVER = {  # CT of the abdomen, in tiles
    "data.fit": "tiles",
    "data.image_size": (48, 64, 64),
    "data.tiles.spacing": (3.0, 2.5, 2.5),  # mm
    "data.volumes.window": (-160.0, 240.0),  # HU
}


def get_config(arg=""):
    config = default.get_config()
    config.name = "volumes"
    config.methods = ("real_plain", "real_only")
    config.data.source = "volumes"
    config.data.image_size = (32, 48, 48)  # depth (feet to head), height (front to back), width
    config.data.channels = 1
    config.data.num_train = config.data.num_validation = 0
    config.segmenter.unet.width, config.segmenter.unet.num_levels = 8, 3
    config.generator.pix2pix.num_levels = 3
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 8, 32
    config.discriminator.patchgan.width, config.discriminator.patchgan.num_levels = 8, 2
    config.optim.learning_rate = 3e-3
    config.pretrain.num_steps, config.train.num_steps = 200, 600
    config.pretrain.batch_size = config.train.batch_size = config.outer.batch_size = 2
    config.evaluate.batch_size = 4
    config.evaluate.nsd_mm = 2.0
    config.eval_every, config.sample_every, config.checkpoint_every = 50, 100, 100
    default.apply_choices(config, arg)
    return config

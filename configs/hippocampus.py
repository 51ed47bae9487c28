"""Hippocampus in MR: whole small volumes, two classes, from the Medical Segmentation Decathlon.

python run.py --config=configs/hippocampus.py --workdir=runs/hippocampus \\
    --config.data.volumes.folder=Task04_Hippocampus

The folder is the unpacked Task04_Hippocampus.tar (http://medicaldecathlon.com, CC BY-SA 4.0). Needs the
extra `volumes`.
"""

from configs import default, volumes


def get_config(arg=""):
    config = volumes.get_config()
    config.name = config.data.volumes.name = "hippocampus"
    config.data.image_size = (24, 32, 24)  # of about 35 x 50 x 35 voxels of 1 mm
    config.evaluate.nsd_mm = 1.0
    config.data.num_train, config.data.num_validation = 20, 20
    default.apply_choices(config, arg)
    return config

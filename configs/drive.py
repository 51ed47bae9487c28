"""Retinal vessels: 10 labelled images of DRIVE (8 + 2), official test part.

python run.py --mode=prepare --config=configs/drive.py --data_dir=DOWNLOADS
python run.py --config=configs/drive.py --workdir=runs/drive

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "drive"
    config.data.source = "tfds"
    config.data.tfds.name = "drive"
    config.data.num_train, config.data.num_validation = 8, 2
    config.outer.batch_size = 2
    config.data.image_size = 256
    default.apply_choices(config, arg)
    return config

"""Skin lesions in dermoscopy: 40 labelled images of PH2, tested on a fixed fifth.

python run.py --mode=prepare --config=configs/ph2.py --data_dir=DOWNLOADS
python run.py --config=configs/ph2.py --workdir=runs/ph2

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "ph2"
    config.data.source = "tfds"
    config.data.tfds.name = "ph2"
    config.loss.overlap = "jaccard"
    default.apply_choices(config, arg)
    return config

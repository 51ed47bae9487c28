"""Skin lesions in dermoscopy: 40 labelled images of ISIC 2018, official test part.

python run.py --mode=prepare --config=configs/isic.py --data_dir=DOWNLOADS
python run.py --config=configs/isic.py --workdir=runs/isic

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "isic2018"
    config.data.source = "tfds"
    config.data.tfds.name = "isic2018"
    config.loss.overlap = "jaccard"
    default.apply_choices(config, arg)
    return config

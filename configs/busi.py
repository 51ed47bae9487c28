"""Breast tumours in ultrasound: 100 labelled images of BUSI, tested on a fixed fifth.

python run.py --mode=prepare --config=configs/busi.py --data_dir=DOWNLOADS
python run.py --config=configs/busi.py --workdir=runs/busi

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "busi"
    config.data.source = "tfds"
    config.data.tfds.name = "busi"
    config.data.num_train, config.data.num_validation = 80, 20
    config.data.channels = 1
    default.apply_choices(config, arg)
    return config

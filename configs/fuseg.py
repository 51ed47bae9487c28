"""Foot ulcers in photographs: 50 labelled images of FUSeg, official validation part as test.

python run.py --mode=prepare --config=configs/fuseg.py --data_dir=DOWNLOADS
python run.py --config=configs/fuseg.py --workdir=runs/fuseg

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "fuseg"
    config.data.source = "tfds"
    config.data.tfds.name = "fuseg"
    config.data.num_train, config.data.num_validation = 40, 10
    config.outer.batch_size = 10
    default.apply_choices(config, arg)
    return config

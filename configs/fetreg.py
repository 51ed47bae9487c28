"""Placental vessels in fetoscopy: 100 labelled frames of FetReg, no video on both sides.

python run.py --mode=prepare --config=configs/fetreg.py --data_dir=DOWNLOADS
python run.py --config=configs/fetreg.py --workdir=runs/fetreg

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "fetreg"
    config.data.source = "tfds"
    config.data.tfds.name = "fetreg"
    config.data.num_train, config.data.num_validation = 80, 20
    default.apply_choices(config, arg)
    return config

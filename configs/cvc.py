"""Polyps in colonoscopy: 40 labelled frames of CVC-ClinicDB, tested on a fixed fifth.

python run.py --mode=prepare --config=configs/cvc.py --data_dir=DOWNLOADS
python run.py --config=configs/cvc.py --workdir=runs/cvc

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "cvc_clinicdb"
    config.data.source = "tfds"
    config.data.tfds.name = "cvc_clinicdb"
    default.apply_choices(config, arg)
    return config

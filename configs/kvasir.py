"""Polyps in colonoscopy: 40 labelled images of Kvasir-SEG, tested on a fixed fifth.

python run.py --mode=prepare --config=configs/kvasir.py --data_dir=DOWNLOADS
python run.py --config=configs/kvasir.py --workdir=runs/kvasir

DOWNLOADS: the folder in which the official archives were unpacked. Not yet trained at full size here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "kvasir_seg"
    config.data.source = "tfds"
    config.data.tfds.name = "kvasir_seg"
    default.apply_choices(config, arg)
    return config

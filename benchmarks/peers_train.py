"""Trains a segmenter of another library on the cases that peers.py wrote: in that library's environment.

Imports nothing of fewshotseg, and knows of the test the images alone. peers.py calls it:

PYTHON benchmarks/peers_train.py PEER CASES.npz FOLDER --cpu_minutes=10 --seed=0 [--encoder=ENCODER.npz]
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

RATE, ENCODER_RATE, DECAY, BATCH = 1e-3, 0.3, 1e-4, 8
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of EfficientNet-Lite0 by stage
HEAD = ("_conv_head.", "_bn1.", "_fc.")  # of its classifier


class Budget:
    """CPU time of this process, all threads, from now on."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.process_time):
        self.clock, self.total, self.began = clock, 60 * minutes, clock()

    def share(self) -> float:
        """Of it, what is spent: from 0 to 1, and beyond."""
        return (self.clock() - self.began) / self.total


def train(budget: Budget, step: Callable[[float], None], schedule: Callable[[float], float]) -> int:
    """Calls `step(schedule(share))` until the budget is spent: a whole schedule fits into it.

    Returns:
      How many steps that were.
    """
    steps = 0
    while (share := budget.share()) < 1:
        step(schedule(share))
        steps += 1
    return steps


def cosine(share: float, warm_up: float = 0.05) -> float:
    """From 0 up to 1 in the first `warm_up`, then down to 0 along half a cosine."""
    rest = (share - warm_up) / (1 - warm_up)
    return share / warm_up if rest < 0 else 0.5 * (1 + math.cos(math.pi * rest))


def polynomial(share: float) -> float:
    """nnU-Net's schedule."""
    return (1 - share) ** 0.9


def batches(number: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices, forever: every index once before any comes again, as long as whole batches are left."""
    while True:
        order = rng.permutation(number)
        for start in range(0, number - min(size, number) + 1, size):
            yield order[start : start + size]


def release_names() -> dict[str, str]:
    """timm's name -> the release's, for every tensor of EfficientNet-Lite0 without its head."""
    modules = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
    block = 0
    for stage, repeats in enumerate(STAGES):
        for i in range(repeats):
            ours, theirs = f"blocks.{stage}.{i}", f"_blocks.{block}"
            named = ["conv_dw", "bn1", "conv_pw", "bn2"]  # the first stage does not expand
            release = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            if stage:
                named = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
                release = ["_expand_conv", "_bn0", *release]
            modules |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in zip(named, release, strict=True)}
            block += 1
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in modules.items()
        for part in (norm if "bn" in ours.rpartition(".")[2] else ("weight",))
    }


# --- The peers: (cases, arguments) -> (steps, predict) ---------------------------------------------


def train_monai(cases, args):
    """BasicUNet on grey values or colours in [0, 1], with the transforms of MONAI's 2-D tutorials."""
    import torch
    from monai import losses, transforms
    from monai.networks import nets
    from monai.utils import set_determinism

    set_determinism(args.seed)
    images, masks = _scaled(cases["train_images"], 0.0), cases["train_masks"]
    both, modes = ("image", "mask"), ("bilinear", "nearest")
    augment = transforms.Compose(
        [
            transforms.RandFlipd(both, prob=0.5, spatial_axis=1),
            transforms.RandRotated(
                both, range_x=math.pi / 12, prob=0.5, mode=modes, padding_mode="border"
            ),
            transforms.RandZoomd(
                both, min_zoom=0.8, max_zoom=1.2, prob=0.5, mode=("bilinear", "nearest")
            ),
            transforms.RandScaleIntensityd("image", factors=0.2, prob=0.5),
            transforms.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            transforms.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            transforms.RandGaussianNoised("image", prob=0.3, std=0.05),
        ]
    )
    data = [
        {"image": torch.from_numpy(i), "mask": torch.from_numpy(m[None].astype(np.float32))}
        for i, m in zip(images, masks, strict=True)
    ]
    network = nets.BasicUNet(spatial_dims=2, in_channels=images.shape[1], out_channels=1)
    loss = losses.DiceCELoss(sigmoid=True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)

    def draw(indices):
        drawn = [augment(data[i]) for i in indices]
        return [torch.stack([d[key].as_tensor() for d in drawn]) for key in both]

    steps = _fit(network, loss, optimizer, [1.0], draw, len(data), args)
    return steps, lambda x: _predict(network, _scaled(x, 0.0))


def train_smp(cases, args):
    """U-Net on EfficientNet-Lite0 with ImageNet weights, Dice + cross-entropy.

    The transforms are those of the library's CamVid example without crops, their geometry in our ranges.
    """
    import albumentations
    import cv2
    import segmentation_models_pytorch as smp
    import torch

    cv2.setNumThreads(0)
    images, masks = cases["train_images"], cases["train_masks"]
    network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=3, classes=1)
    load_encoder(network.encoder, dict(np.load(args.encoder)))
    network.to(memory_format=torch.channels_last)  # a seventh faster on a core
    one_of = albumentations.OneOf
    augment = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=(0.8, 1.2), rotate=(-15, 15), translate_percent=(-0.1, 0.1), p=1,
                shear=(-8, 8), border_mode=cv2.BORDER_REFLECT_101,
            ),
            albumentations.GaussNoise(std_range=(0.02, 0.1), p=0.2),
            albumentations.Perspective(p=0.5),
            one_of(
                [
                    albumentations.CLAHE(p=1),
                    albumentations.RandomBrightnessContrast(contrast_limit=0, p=1),
                    albumentations.RandomGamma(p=1),
                ],
                p=0.9,
            ),
            one_of(
                [
                    albumentations.Sharpen(p=1), albumentations.Blur(blur_limit=3, p=1),
                    albumentations.MotionBlur(blur_limit=3, p=1),
                ],
                p=0.9,
            ),
            one_of(
                [
                    albumentations.RandomBrightnessContrast(brightness_limit=0, p=1),
                    albumentations.HueSaturationValue(p=1),
                ],
                p=0.9,
            ),
        ],
        seed=args.seed,
    )  # fmt: skip
    dice, entropy = smp.losses.DiceLoss("binary"), smp.losses.SoftBCEWithLogitsLoss()
    rest = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": network.encoder.parameters()}, {"params": rest}], RATE, weight_decay=DECAY
    )

    def draw(indices):
        drawn = [augment(image=_colour(images[i]), mask=masks[i]) for i in indices]
        x = _scaled(np.stack([d["image"] for d in drawn]), 1.0)
        y = np.stack([d["mask"] for d in drawn])[:, None].astype(np.float32)
        x = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
        return x, torch.from_numpy(y)

    def loss(logits, y):
        return dice(logits, y) + entropy(logits, y)

    steps = _fit(network, loss, optimizer, [ENCODER_RATE, 1.0], draw, len(images), args)
    return steps, lambda x: _predict(network, _scaled(_colour(x), 1.0))


def load_encoder(encoder, tensors: dict[str, np.ndarray]) -> None:
    """The released weights into the encoder, whose features of an image have to be ours to 1e-3.

    Raises:
      SystemExit: a tensor is left over or missing, or the features differ.
    """
    import torch

    expected = [tensors.pop(f"feature_{i}") for i in range(5)]
    image, names = tensors.pop("image"), release_names()
    left = [n for n in tensors.keys() - set(names.values()) if not n.startswith(HEAD)]
    if left:
        raise SystemExit(f"peers_train.py: {sorted(left)} of the weights belong nowhere.")
    state = {ours: torch.from_numpy(tensors[theirs]) for ours, theirs in names.items()}
    encoder.model.load_state_dict(state, strict=True)
    with torch.no_grad():
        found = encoder.eval()(torch.from_numpy(_scaled(image[None], 1.0)))[1:]
    for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        error = np.abs(ours - theirs.numpy().transpose(0, 2, 3, 1)).max() / np.abs(ours).max()
        print(f"features {i}: within {error:.1e} of ours", flush=True)
        if not error <= 1e-3:
            raise SystemExit(f"peers_train.py: the encoder's features {i} are not ours.")


def train_nnunet(cases, args):
    """nnU-Net v2, 2d: its plan, augmentation, loss, optimiser and schedule, mirrored predictions.

    The steps are its trainer's; only what it does between epochs (its validation on patches) is left out.
    """
    files = args.folder / "nnunet"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(files / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    name, device = "Dataset001_Peers", torch.device("cpu")
    split = _write_raw(cases, files / "raw" / name)
    planning.extract_fingerprints([1], num_processes=1)
    planning.plan_experiments([1])
    planning.preprocess([1], configurations=["2d"], num_processes=[1])
    home = files / "preprocessed" / name
    (home / "splits_final.json").write_text(json.dumps([split]))
    os.environ["nnUNet_n_proc_DA"] = "0"  # its batches are made in this process, whose time counts
    trainer = get_trainer_from_args(name, "2d", 0, device=device)
    trainer.on_train_start()
    trainer.network.train()

    def step(rate):
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * rate
        trainer.train_step(next(trainer.dataloader_train))

    args.budget = Budget(args.cpu_minutes)
    steps = train(args.budget, step, polynomial)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager,
        [trainer.network.state_dict()], trainer.dataset_json, "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    predictor.network.eval()

    def predict(images):
        found = []
        for image in images.astype(np.float32).transpose(0, 3, 1, 2)[:, :, None]:
            spacing = {"spacing": (999.0, 1.0, 1.0)}
            _, p = predictor.predict_single_npy_array(image, spacing, None, None, True)
            found.append(p[1, 0])
        return np.stack(found)

    return steps, predict


def _write_raw(cases, folder: pathlib.Path) -> dict[str, list[str]]:
    """Training and validation images in nnU-Net's layout; their names, as one of its splits."""
    from PIL import Image

    names = {"train": [], "val": []}
    for part, key in (("train", "train"), ("validation", "val")):
        for i, image in enumerate(cases[f"{part}_images"]):
            mask, name = cases[f"{part}_masks"][i], f"{key}_{i:03d}"
            for where, array in (("imagesTr", image), ("labelsTr", mask)):
                path = folder / where / (name + ("_0000.png" if where == "imagesTr" else ".png"))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path)
            names[key].append(name)
    channels = cases["train_images"].shape[-1]
    content = {
        "channel_names": {str(i): "RGB"[i] if channels == 3 else "grey" for i in range(channels)},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": sum(map(len, names.values())),
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return names


PEERS = {
    "monai": (train_monai, ("torch", "monai")),
    "smp": (train_smp, ("torch", "segmentation-models-pytorch", "timm", "albumentations")),
    "nnunet": (train_nnunet, ("torch", "nnunetv2", "batchgeneratorsv2")),
}  # the packages are named in the log


def _scaled(images: np.ndarray, below: float) -> np.ndarray:
    """uint8 `[N, H, W, C]` to float32 `[N, C, H, W]` in [-below, 1]."""
    scaled = images.astype(np.float32).transpose(0, 3, 1, 2) * ((1 + below) / 255) - below
    return np.ascontiguousarray(scaled, np.float32)


def _colour(images: np.ndarray) -> np.ndarray:
    """Three channels of one."""
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _fit(network, loss, optimizer, rates, draw, number, args) -> int:
    """Trains on drawn batches; `rates` are of the optimiser's groups, relative to `RATE`."""
    network.train()
    chosen = batches(number, BATCH, np.random.default_rng(args.seed))

    def step(rate):
        for group, own in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = RATE * rate * own
        x, y = draw(next(chosen))
        optimizer.zero_grad(set_to_none=True)
        loss(network(x), y).backward()
        optimizer.step()

    args.budget = Budget(args.cpu_minutes)
    return train(args.budget, step, cosine)


def _predict(network, images: np.ndarray) -> np.ndarray:
    """Probabilities `[N, H, W]` of images `[N, C, H, W]`."""
    import torch

    network.eval()
    with torch.no_grad():
        chunks = (torch.from_numpy(images[i : i + 16]) for i in range(0, len(images), 16))
        return np.concatenate([torch.sigmoid(network(x))[:, 0].numpy() for x in chunks])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--cpu_minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", type=pathlib.Path)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    cases = dict(np.load(args.cases))
    run, packages = PEERS[args.peer]
    began = time.monotonic()
    steps, predict = run(cases, args)
    log = {
        "steps": steps,
        "cpu_seconds": round(args.budget.share() * args.budget.total, 1),
        "wall_seconds": round(time.monotonic() - began, 1),  # with the preparation
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    found = {part: predict(cases[f"{part}_images"]) for part in ("validation", "test")}
    np.savez(args.folder / "predictions.npz", **found)
    (args.folder / "log.json").write_text(json.dumps(log, indent=1))  # last: all is there


if __name__ == "__main__":
    main()

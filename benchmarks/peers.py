"""Other libraries on the labelled images of runs of fewshot.py, in the same minutes of one core.

python benchmarks/peers.py runs/fewshot/busi/labels_40_draw_0 [more runs] --python=PEERS/bin/python
python benchmarks/fewshot_table.py runs/peers/peers_cases.csv.gz ROWS.csv.gz [--against=NETWORK: METHOD]

A run needs its config.json and splits.json alone. The peers (`PEERS` in peers_train.py) are

* monai: BasicUNet from scratch, Dice + cross-entropy, AdamW, the random transforms of MONAI's tutorials;
* smp: segmentation_models_pytorch, U-Net on the very EfficientNet-Lite0 that `efficient_unet` starts with,
  checked by its features, Dice + cross-entropy, AdamW, the transforms of the library's CamVid example;
* nnunet: nnU-Net v2, 2d, as it plans itself.

In an environment of their own:

python -m venv PEERS && PEERS/bin/pip install torch torchvision monai timm segmentation-models-pytorch \\
    albumentations nnunetv2

What makes it fair, and where it is not quite. All get the same training images, squashed to the same size,
in 8 bits; probabilities at that size are brought back to the original one, cut at one half and measured by
`results/metrics.py`, as our own. The peers' process never sees a mask of a test image. `--cpu_minutes` is
CPU time of training steps with their augmentation, on one thread; imports, planning and prediction do not
count, in the peers' favour; our runs' seconds are in the second file of `fewshot_table.py --rows`. Learning
rates fall to zero just as the time ends. The last weights are the model; the validation images choose
nothing, and `--all_labels` trains on them too. nnU-Net mirrors when it predicts, as it does by default; the
others do not, and neither do we. Nothing of the peers was tuned on these data: what a person would turn
by hand for forty images, batch size or steps, is as it is by default or as written here.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

FLAGS = flags.FLAGS
flags.DEFINE_string("python", sys.executable, "Python of the peers' environment.")
flags.DEFINE_string("output", "runs/peers", "Folder for what the peers predict, and for the rows.")
flags.DEFINE_list("peers", ["monai", "smp", "nnunet"], "Which peers.")
flags.DEFINE_float("cpu_minutes", 10.0, "CPU-minutes of every training.", lower_bound=0.01)
flags.DEFINE_bool("all_labels", False, "Train on the validation images too.")

TRAINER = ROOT / "benchmarks" / "peers_train.py"
NETWORKS = {
    "monai": "monai BasicUNet",
    "smp": "smp U-Net EfficientNet-Lite0",
    "nnunet": "nnU-Net v2 2d",
}
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "BLIS")
COLUMNS = ("dataset", "segmenter", "size", "steps", "labels", "method", "draw")
COLUMNS += ("seconds", "validation_dice", "device", "revision", "steps_done", "packages")


def read_run(workdir: pathlib.Path):
    """What a peer has to know of a run: its configuration, splits and source of cases."""
    from fewshotseg import errors
    from fewshotseg.data import cases
    from fewshotseg.runs import folder

    config = folder.read_config(workdir)
    try:
        splits = json.loads((workdir / "splits.json").read_text())
    except (OSError, ValueError) as error:
        raise errors.InputError(f"{workdir}: has no splits.json yet: start its run.") from error
    if not splits["validation"]:
        raise errors.InputError(
            f"{workdir}: holds no image out: give the run with data.validate='held_out', and --all_labels."
        )
    data = config["data"]
    return config, splits, cases.create_source(data["source"], data[data["source"]])


def write_cases(config, splits, source, path: pathlib.Path, all_labels: bool) -> None:
    """What a peer gets: images, uint8 `[N, H, W, C]`, and masks, uint8 `[N, H, W]`, but for the test."""
    from fewshotseg.data import batches

    size, channels = config["data"]["image_size"], config["data"]["channels"]
    size = tuple(size) if isinstance(size, list) else size
    train = [*splits["train"], *(splits["validation"] if all_labels else ())]
    parts = {"train": train, "validation": splits["validation"], "test": splits["test/test"]}
    found = {}
    for part, ids in parts.items():
        arrays = batches.load_arrays(source, tuple(ids), size, channels)
        found[f"{part}_images"] = np.rint((arrays["image"] + 1) * 127.5).astype(np.uint8)
        if part != "test":
            found[f"{part}_masks"] = arrays["mask"]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)


def write_encoder(image: np.ndarray, path: pathlib.Path) -> None:
    """The ImageNet weights as the release names them, and our encoder's features of an image to compare."""
    from fewshotseg.models import efficientnet_lite, weights

    tensors = weights.read_release(efficientnet_lite.RELEASE, "leave --peers=smp out")
    params = efficientnet_lite.from_release(tensors)
    image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image
    x = image[None].astype(np.float32) / 127.5 - 1
    features = efficientnet_lite.Encoder().apply({"params": params}, x)
    named = {f"feature_{i}": np.asarray(feature) for i, feature in enumerate(features)}
    np.savez(path, image=image, **tensors, **named)


def score(probabilities: np.ndarray, source, ids) -> dict[str, dict]:
    """Metrics of every case, of probabilities `[N, H, W]` at the size of the network."""
    from fewshotseg.data import canvas
    from fewshotseg.results import metrics

    found = {}
    for case_id, plane in zip(ids, probabilities, strict=True):
        case = source.load(case_id)
        full = canvas.restore_probabilities(plane[..., None], case.mask.shape)
        mask = canvas.probabilities_to_mask(full)
        found[case_id] = metrics.mean_over_classes(metrics.case_metrics(mask, case.mask, 2))
    return found


def run_peer(peer: str, workdir: pathlib.Path) -> None:
    """Trains a peer on a run's images, unless that is done, and writes its rows beside its predictions."""
    from fewshotseg.results import metrics, statistics
    from fewshotseg.runs import folder

    config, splits, source = read_run(workdir)
    draw, size = config["seed"], config["data"]["image_size"]
    name = f"{peer}_{FLAGS.cpu_minutes:g}min" + ("_all" if FLAGS.all_labels else "")
    place = pathlib.Path(FLAGS.output, config["name"], f"draw_{draw}", name)
    if (place / "rows.json").exists():
        return
    cases = place / "cases.npz"
    write_cases(config, splits, source, cases, FLAGS.all_labels)
    command = [FLAGS.python, str(TRAINER), peer, str(cases), str(place)]
    command += [f"--cpu_minutes={FLAGS.cpu_minutes}", f"--seed={draw}"]
    if peer == "smp":
        write_encoder(np.load(cases)["train_images"][0], place / "encoder.npz")
        command.append(f"--encoder={place / 'encoder.npz'}")
    alone = {f"{library}_NUM_THREADS": "1" for library in THREADS}
    alone |= {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}  # nothing is fetched
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (place / "output.txt").open("w") as file:
        subprocess.run(command, env=own | alone, stdout=file, stderr=file, check=True)
    predictions, log = (
        np.load(place / "predictions.npz"),
        json.loads((place / "log.json").read_text()),
    )
    labels = len(splits["train"]) + len(splits["validation"])
    row = {"dataset": config["name"], "segmenter": NETWORKS[peer], "size": size, "draw": draw}
    row |= {"steps": f"{FLAGS.cpu_minutes:g} CPU-min", "labels": labels}
    row |= {"method": peer + (" on all labels" if FLAGS.all_labels else "")}
    units = statistics.of_test_set(splits.get("clusters") or {}, "test")
    tested = score(predictions["test"], source, splits["test/test"])
    rows = [
        row | {
            "case": case, "unit": units.get(case, ""),
            "dice": round(found["dice"], 4), "hd95": round(found["hd95"], 1),
        }
        for case, found in tested.items()
    ]  # fmt: skip
    validated = score(predictions["validation"], source, splits["validation"]).values()
    dice = "" if FLAGS.all_labels else metrics.mean_dice([[found] for found in validated])
    environment = folder.environment()
    packages = " ".join(f"{key} {value}" for key, value in log["packages"].items())
    row |= {"seconds": log["cpu_seconds"], "steps_done": log["steps"], "packages": packages}
    row |= {"validation_dice": dice, "device": f"{environment['device']}, one thread"}
    row |= {"revision": environment["git_revision"]}
    content = json.dumps({"cases": rows, "run": row})
    (place / "rows.json").write_text(content)


def main(argv):
    import fewshot_table

    from fewshotseg import errors

    output = pathlib.Path(FLAGS.output)
    try:
        if unknown := [peer for peer in FLAGS.peers if peer not in NETWORKS]:
            known = ", ".join(NETWORKS)
            raise errors.InputError(f"--peers has {unknown[0]!r}: use some of {known}.")
        if len(argv) < 2:
            raise errors.InputError("give folders of runs of fewshot.py.")
        for workdir, peer in ((pathlib.Path(w), p) for w in argv[1:] for p in FLAGS.peers):
            run_peer(peer, workdir)
    except errors.InputError as error:
        sys.exit(f"peers.py: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"peers.py: {error.cmd[2]} ended with {error.returncode}: see {error.cmd[4]}/output.txt."
        )
    found = [json.loads(path.read_text()) for path in sorted(output.rglob("rows.json"))]
    cases, runs = [row for rows in found for row in rows["cases"]], [rows["run"] for rows in found]
    fewshot_table.write_rows(cases, fewshot_table.COLUMNS, output / "peers_cases.csv.gz")
    fewshot_table.write_rows(runs, COLUMNS, output / "peers_runs.csv")


if __name__ == "__main__":
    app.run(main)

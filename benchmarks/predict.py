"""Images per second from the bytes of a file to its mask: ours, exported, ONNX Runtime, and PyTorch.

pip install torch && pip install -e '.[onnx]' onnxruntime && python benchmarks/predict.py --cores=2

All four have the same weights, and their masks are compared before anything is timed. The images are
phantoms, as PNG in memory; each is decoded, resized to the network's size, segmented alone, and the
probabilities are resized back and thresholded. PyTorch has the same resizing on the host as
ours, and its faster layout, channels_last. Rounds of a few images are taken in turn, and ratios are medians
of rounds: on a shared machine, absolute times mean little. On one core CPU time is compared; on several,
wall time: waiting threads count as CPU time.
"""

import argparse
import concurrent.futures
import functools
import io
import os
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
import onnxruntime
import torch
from jax import export as jax_export
from PIL import Image
from segmenter_vs_torch import TorchUNet

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import default
from fewshotseg.data import canvas, image_files
from fewshotseg.data.sources.phantom import PhantomSource
from fewshotseg.results import export, onnx_export
from fewshotseg.results.predictor import create_network, create_predictor, probabilities_of

THRESHOLD = 0.5


def make_programs(size, cores):
    """Name -> uint8 `[H, W, 3]` to float32 `[H, W, 1]`."""
    config = default.get_config().to_dict()
    config["data"]["image_size"], config["segmenter"]["name"] = size, "unet"
    fields = config["segmenter"]["unet"]
    weights = create_network(config, 2).init(jax.random.key(0))
    predictor = create_predictor(config, weights, ["lesion"], "benchmark")
    exported = jax.jit(jax_export.deserialize(bytearray(export.stablehlo(predictor))).call)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(onnx_export.onnx_file(predictor), options)
    network = TorchUNet(fields["width"], fields["num_levels"], fields["groups"], 3, axes=2).eval()
    network.load(weights, fields["num_levels"])
    network.to(memory_format=torch.channels_last)  # its faster layout

    @torch.inference_mode()
    def in_torch(image):
        squashed = canvas.to_network_image(image, size, 3)
        inputs = torch.from_numpy(squashed).permute(2, 0, 1)[None]
        found = network(inputs.contiguous(memory_format=torch.channels_last))
        probabilities = torch.sigmoid(found)[0].permute(1, 2, 0).numpy()
        return canvas.restore_probabilities(probabilities, image.shape[:2])

    return {
        "ours": lambda image: next(iter(probabilities_of(predictor, [image], ["a"], 1))),
        "stablehlo": lambda image: np.asarray(exported(image)),
        "onnxruntime": lambda image: session.run(None, {"image": image})[0],
        "torch": in_torch,
    }


def to_mask(program, data):
    image, _ = image_files.read_image("phantom.png", data)
    return canvas.probabilities_to_mask(program(image), THRESHOLD)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=256, help="of the images and the network, pixels"
    )
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--images", type=int, default=5, help="in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--in_flight", type=int, default=1, help="images at a time")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    source = PhantomSource(num_cases=max(8, args.images), image_size=args.size)
    files = []
    for case_id in source.ids[: args.images]:
        buffer = io.BytesIO()
        Image.fromarray(source.load(case_id).image).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    programs = make_programs(args.size, args.cores)
    wanted = [to_mask(programs["torch"], data) for data in files]
    for name, program in programs.items():  # also compiles them
        wrong = np.mean(
            [(to_mask(program, d) != w).mean() for d, w in zip(files, wanted, strict=True)]
        )
        if wrong > 1e-3:
            raise SystemExit(f"{name} differs from PyTorch in {100 * wrong:.2f} % of the pixels")
    pool = concurrent.futures.ThreadPoolExecutor(args.in_flight)
    clock = time.process_time if args.cores == 1 else time.perf_counter
    seconds = {name: [] for name in programs}
    for number in range(args.rounds):
        for name in list(programs)[:: 1 if number % 2 else -1]:
            started = clock()
            list(pool.map(functools.partial(to_mask, programs[name]), files))
            seconds[name].append((clock() - started) / len(files))
    unit = "CPU time" if args.cores == 1 else "wall time"
    print(
        f"{args.size} px, {args.cores} core(s), {unit} per image, {args.rounds} rounds of {len(files)}:"
    )
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["torch"], strict=True)]
        print(
            f"{name:12} {1 / statistics.median(times):6.1f} images/s (best {1 / min(times):.1f}), "
            f"{statistics.median(ratios):.2f} of PyTorch's time ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()

"""What the live page asks for: bytes of a picture or of a camera frame in, a one-channel answer out.

An answer is `width`, `height` (uint16), number of planes (uint32), milliseconds in the model (float32),
all little-endian, and then the planes, uint8 `[height, width]`: the probability of the foreground from 0
to 255; for several classes that of the most probable one, and a second plane with its id.
"""

import struct
import threading
import time

import numpy as np

from fewshotseg.data import image_files
from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor, probabilities_of

HEAD = struct.Struct("<HHIf")
FRAME_HEAD = struct.Struct("<HH")
MAX_FRAME_SIDE = 512  # pixels
MAX_MEGAPIXELS = 20.0
MAX_BODY = 32 * 2**20  # bytes of a picture's file
MAX_FRAME = FRAME_HEAD.size + 3 * MAX_FRAME_SIDE**2


class LiveModel:
    """A model for one image at a time: several threads take turns, so that memory stays flat."""

    def __init__(self, predictor: Predictor):
        self._predictor, self._turn = predictor, threading.Lock()
        self.segment(np.zeros((8, 8, 3), np.uint8))  # compiled before somebody waits for it

    def segment_file(self, data: bytes) -> bytes:
        """The answer for a PNG, JPEG, TIFF, BMP or GIF file, at its size.

        Raises:
          InputError: it cannot be read, or is too large to be decoded.
        """
        with self._turn:
            try:
                image, _ = image_files.read_image("this file", data, MAX_MEGAPIXELS)
            except InputError as error:
                raise InputError(str(error).removeprefix("this file: ")) from error
            return self._answer(image)

    def segment_frame(self, data: bytes) -> bytes:
        """The answer for width, height (uint16, little-endian) and RGB bytes.

        Raises:
          InputError: these do not fit together, or the frame is too large.
        """
        width, height = FRAME_HEAD.unpack_from(data) if len(data) >= FRAME_HEAD.size else (0, 0)
        fits = len(data) == FRAME_HEAD.size + 3 * width * height
        if not fits or not 1 <= min(width, height) <= max(width, height) <= MAX_FRAME_SIDE:
            raise InputError(f"a frame has a side of at most {MAX_FRAME_SIDE} pixels, in RGB.")
        pixels = np.frombuffer(data, np.uint8, offset=FRAME_HEAD.size)
        return self.segment(pixels.reshape(height, width, 3))

    def segment(self, image: np.ndarray) -> bytes:
        """The answer for uint8 `[H, W, 1 or 3]`."""
        with self._turn:
            return self._answer(image)

    def _answer(self, image):
        started = time.perf_counter()
        (found,) = probabilities_of(self._predictor, [image], ["this image"], 1)
        planes = [np.rint(255 * found.max(-1)).astype(np.uint8)]
        if found.shape[-1] > 1:
            planes.append(found.argmax(-1).astype(np.uint8))
        height, width = image.shape[:2]
        milliseconds = 1000 * (time.perf_counter() - started)
        head = HEAD.pack(width, height, len(planes), milliseconds)
        return head + b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)

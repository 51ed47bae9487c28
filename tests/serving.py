"""A live page in a thread, with a model whose answers are known."""

import contextlib
import socket
import threading
import time

import numpy as np

from fewshotseg.results.predictor import Predictor
from fewshotseg.web import security, server

SIZE = 16


def brightness(images):
    """The probability of a pixel is its grey value."""
    return (images.mean(axis=-1, keepdims=True) + 1) / 2


def grey_levels(images):
    """Three classes: dark, grey, bright."""
    level = images.mean(axis=-1)
    parts = [level < -0.5, (level >= -0.5) & (level < 0.5), level >= 0.5]
    return np.stack(parts, axis=-1).astype(np.float32)


def make_predictor(function=brightness, class_names=("lesion",)):
    return Predictor(function, SIZE, 3, class_names, 0.5, "test")


@contextlib.contextmanager
def running(predictor=None, app=None):
    """Yields the guard and the address, without its token, of a server on a free port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = app or server.create_app(predictor or make_predictor(), "a model")
        guard = security.Guard(app, "127.0.0.1", port)
        running_server = server.create_server(guard)
        thread = threading.Thread(target=running_server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running_server.started:
                time.sleep(0.01)
            yield guard, f"http://127.0.0.1:{port}"
        finally:
            running_server.should_exit = True
            thread.join()

"""Ctrl-C and SIGTERM, remembered: what a cluster sends before it kills ends a run as Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM. Whatever saves on Ctrl-C saves on this too."""


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[Callable[[], None]]:
    """Yields a function that raises if there was a Ctrl-C or a SIGTERM, now or earlier.

    It raises KeyboardInterrupt, for SIGTERM `Terminated`. Both also interrupt at once. But where one
    strikes a destructor or a callback of the garbage collector, and JAX has both, Python prints the
    exception and drops it. Blocks may be nested. A signal that is ignored from outside, as the shell
    does with Ctrl-C for commands in the background, stays ignored; the other one does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python delivers signals to the main thread only
        return
    seen = []

    def raise_if_interrupted():
        if seen:
            raise seen[0]

    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {number: _handler(number, before[number], seen) for number in SIGNALS}
    for number in SIGNALS:
        if ours[number]:
            signal.signal(number, ours[number])
    try:
        yield raise_if_interrupted
    finally:
        for number in SIGNALS:
            if ours[number]:
                signal.signal(number, before[number])


def _handler(number, before, seen):
    """None where the signal is not ours to handle."""
    if before is None or before == signal.SIG_IGN:
        return None
    kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def handle(received, frame):
        seen.append(kind())
        if callable(before):
            before(received, frame)
        raise kind

    return handle

"""Interrupts that Python drops are not lost."""

import signal

import pytest

from fewshotseg.training import loop as stage


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """In the background of a shell script, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _InterruptedWhenForgotten:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_destructor_is_remembered():
    with stage.remembered_interrupts() as raise_if_interrupted:
        raise_if_interrupted()
        _InterruptedWhenForgotten()  # Python prints the KeyboardInterrupt and goes on
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_still_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stage.remembered_interrupts():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stage.remembered_interrupts() as raise_if_interrupted:
        signal.raise_signal(signal.SIGINT)
        raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

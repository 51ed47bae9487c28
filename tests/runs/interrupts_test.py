"""Interrupts that Python drops are not lost; SIGTERM is one of them."""

import signal
import threading

import pytest

from fewshotseg.runs import interrupts


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
    with interrupts.remembered_interrupts() as raise_if_interrupted:
        raise_if_interrupted()
        _InterruptedWhenForgotten()  # Python prints the KeyboardInterrupt and goes on
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_still_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.remembered_interrupts():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.remembered_interrupts() as raise_if_interrupted:
        signal.raise_signal(signal.SIGINT)
        raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_sigterm_interrupts_as_ctrl_c_does_and_is_told_apart():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.remembered_interrupts():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")
    assert type(caught.value) is interrupts.Terminated
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_counts_where_ctrl_c_is_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(interrupts.Terminated), interrupts.remembered_interrupts():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")


def test_where_sigterm_is_ignored_it_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.remembered_interrupts() as raise_if_interrupted:
            signal.raise_signal(signal.SIGTERM)
            raise_if_interrupted()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


class _TerminatedWhenForgotten:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_both_blocks_of_two_remember():
    with interrupts.remembered_interrupts() as outer:
        with interrupts.remembered_interrupts() as inner:
            _TerminatedWhenForgotten()
            with pytest.raises(interrupts.Terminated):
                inner()
        with pytest.raises(interrupts.Terminated):
            outer()


def test_another_thread_is_left_alone():
    found = []

    def work():
        with interrupts.remembered_interrupts() as raise_if_interrupted:
            raise_if_interrupted()
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]

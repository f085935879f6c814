"""The first signal is recorded, a later one interrupts, and one that arrives twice counts once."""

from __future__ import annotations

import os
import signal

import pytest

from bitexport.train import stop


def test_the_first_signal_is_noted_and_a_later_one_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    request = stop.StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.asked
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what the terminal sent
        monkeypatch.setattr(stop, "_SAME_SIGNAL", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

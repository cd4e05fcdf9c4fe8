"""Ctrl-C at a chosen place of a saved run."""

import signal

from ffkern import checkpoint


def interrupt_after(monkeypatch, updates):
    """Ctrl-C during that update."""
    real = checkpoint.Checkpointer.on_update

    def on_update(self, trainer):
        if trainer.updates == updates:
            signal.raise_signal(signal.SIGINT)
        real(self, trainer)

    monkeypatch.setattr(checkpoint.Checkpointer, "on_update", on_update)

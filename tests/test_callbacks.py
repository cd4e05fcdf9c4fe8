"""What looks on while a trainer works."""

import contextlib
import copy
import csv
import os
import pty
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import ffkern
from ffkern import Trainer
from ffkern.callbacks import Claim, CSVLog, EarlyStop, Interruptible, Progress, TensorBoard, figures
from ffkern.trainer import Callback, EpochRecord

X = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def make(callbacks, epochs=3, schedule="greedy", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ffkern.FFNet([8, 6, 5], 3, label="concat", head_layers="all")
    opt, head_opt = ffkern.optim.Adam(net.layers.parameters(), 0.01), ffkern.optim.SGD(net.head.parameters(), 0.1)
    return Trainer(net, opt, head_opt=head_opt, schedule=schedule, epochs=epochs, batch_size=10, callbacks=callbacks)


class At(Callback):
    """Calls a function after the update of that number."""

    def __init__(self, updates, action):
        self.updates, self.action = updates, action

    def on_update(self, trainer):
        if trainer.updates == self.updates:
            self.action(trainer)


class ExpectedError(Exception):
    pass


def fail(_):
    raise ExpectedError


def test_on_close_comes_last_and_after_anything():
    calls = []

    class Note(Callback):
        def on_end(self, trainer):
            calls.append("end")

        def on_close(self, trainer):
            calls.append("close")

    make([Note(), Note()]).fit(X, Y)
    assert calls == ["end", "end", "close", "close"]
    calls.clear()
    with pytest.raises(ExpectedError):
        make([Note(), At(2, fail)]).fit(X, Y)
    assert calls == ["close"]
    calls.clear()
    records = make([Note()]).run(X, Y)
    next(records)
    records.close()  # the loop around it was left
    assert calls == ["close"]


# ---------------------------------------------------------------- figures and logs


def test_figures_are_named():
    history = make([]).fit(X, Y, (X, Y)).epochs
    layers = ("loss", "goodness_pos", "goodness_neg", "separation", "kept_pos", "kept_neg")
    checked = [f"validation/{name}" for name in ("error", "error_but_first", "error_softmax")]
    assert list(figures(history[3])) == [*(f"layer 1/{name}" for name in layers), *checked, "seconds"]
    assert figures(history[3])["layer 1/loss"] == history[3].layers[1].loss
    assert list(figures(history[-1])) == ["head/loss", "head/accuracy", *checked, "seconds"]
    assert figures(history[-1])["validation/error"] == history[-1].validation["error"]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_the_history(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("of another run\n" * 100)
    lengths = []
    trainer = make([CSVLog(path)])
    trainer.callbacks += [At(k, lambda t: lengths.append((len(rows_of(path)), len(t.history)))) for k in range(1, 19)]
    history = trainer.fit(X, Y, (X, Y)).epochs
    # on_update comes before the row of its record
    assert lengths == [(k // 2 - (k % 2 == 0 and k > 0), k // 2) for k in range(1, 19)]
    rows = rows_of(path)
    assert len(rows) == len(history) == 9
    names = {"stage", "epoch"}.union(*map(figures, history))
    for row, record in zip(rows, history, strict=True):
        assert set(row) == names
        assert (row["stage"], row["epoch"]) == (record.stage, str(record.epoch))
        given = {name: float(text) for name, text in row.items() if text and name not in ("stage", "epoch")}
        assert given == figures(record)
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_the_table_of_a_resumed_run_is_whole(tmp_path):
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    trainer = make([CSVLog(first), At(7, lambda t: t.stop())])
    trainer.fit(X, Y)
    again = make([CSVLog(second)], seed=1)
    again.load_state_dict(trainer.state_dict())
    again.fit(X, Y)
    # the later one has the columns of later stages too
    assert [{k: v for k, v in row.items() if v} for row in rows_of(second)[:3]] == [
        {k: v for k, v in row.items() if v} for row in rows_of(first)
    ]
    assert len(rows_of(second)) == 9


@pytest.fixture
def events():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    return read


def scalars(history):
    found = {}
    for step, record in enumerate(history, 1):
        for name, value in figures(record).items():
            found.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return found


def test_tensorboard_holds_the_records(tmp_path, events):
    history = make([TensorBoard(tmp_path / "board")]).fit(X, Y, (X, Y)).epochs
    assert events(tmp_path / "board") == scalars(history)


def test_tensorboard_of_a_resumed_run_has_every_step_once(tmp_path, events):
    """The first run went on for two records after the checkpoint."""
    board, taken = tmp_path / "board", []
    trainer = make([TensorBoard(board), At(5, lambda t: taken.append(copied(t))), At(9, lambda t: t.stop())])
    trainer.fit(X, Y)
    assert len(trainer.history) == 4
    assert len(events(board)["layer 0/loss"]) == 3
    again = make([TensorBoard(board)], seed=1)
    again.load_state_dict(taken[0])
    history = again.fit(X, Y).epochs
    assert len(os.listdir(board)) == 2
    assert events(board) == scalars(history)


def copied(trainer):
    return copy.deepcopy(trainer.state_dict())


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"tensorboard is not installed: run `pip install ffkern\[tensorboard\]"
    ):
        TensorBoard(tmp_path / "board")
    assert not (tmp_path / "board").exists()


# ---------------------------------------------------------------- early stop


def records(values, stage="all"):
    return [EpochRecord(i, stage, (), None, 0.0, {"error": v, "other": -v}) for i, v in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ([5, 4, 3, 2, 1], 1, None),
        ([5, 5], 1, 2),
        ([5, 4, 4], 1, 3),  # the same is not lower
        ([5, 4, 4, 3, 3], 2, None),
        ([5, 4, 4, 4], 2, 4),
        ([5, 4, 6, 3, 6, 5, 4], 3, 7),
        ([5, 4, 6, 3, 6, 5, 2], 3, None),
        ([1, 2, 3, 4], 3, 4),
        ([1, 2, 3, 4], 4, None),
    ],
)
def test_early_stop_waits_for_a_lower_value(values, patience, stops):
    calls, history = [], []
    trainer = SimpleNamespace(history=history, stop=lambda: calls.append(len(history)))
    watch = EarlyStop(patience)
    for record in records(values):
        history.append(record)
        watch.on_epoch(trainer, record)
    assert calls[:1] == ([] if stops is None else [stops])
    # a resumed run looks before it begins
    calls.clear()
    watch.on_start(trainer)
    assert bool(calls) == (stops == len(values))


def test_early_stop_looks_at_one_stage_and_one_figure():
    calls = []
    history = [*records([1, 2], "layer 0"), *records([5, 4], "layer 1")]
    trainer = SimpleNamespace(history=history, stop=lambda: calls.append(1))
    EarlyStop(1).on_epoch(trainer, history[-1])
    assert calls == []
    EarlyStop(1, "other").on_epoch(trainer, history[-1])
    assert calls == [1]
    EarlyStop(1).on_start(SimpleNamespace(history=[], stop=fail))


def test_what_early_stop_refuses():
    with pytest.raises(ValueError, match="patience is 0; expected at least 1"):
        EarlyStop(0)
    with pytest.raises(ValueError, match="no held-out images to stop by; expected validation data"):
        make([EarlyStop(1)]).fit(X, Y)
    with pytest.raises(
        ValueError, match="figure is 'loss'; expected one of 'error', 'error_but_first', 'error_softmax'"
    ):
        make([EarlyStop(1, "loss")]).fit(X, Y, (X, Y))


# ---------------------------------------------------------------- interruption


@pytest.fixture
def handlers():
    """Handlers of our own, to see them given back."""
    mine = {number: (lambda *_, n=number: calls.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    calls = []
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    yield SimpleNamespace(calls=calls, back=lambda: all(signal.getsignal(n) is h for n, h in mine.items()))
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_update(handlers, number):
    watch = Interruptible()
    trainer = make([watch, At(5, lambda _: signal.raise_signal(number))])
    trainer.fit(X, Y)
    assert (watch.interrupted, trainer.updates, trainer.finished) == (True, 5, False)
    assert handlers.back()
    assert handlers.calls == []


def test_handlers_are_given_back(handlers):
    watch = Interruptible()
    seen = []
    make([watch, At(1, lambda _: seen.append(handlers.back()))]).fit(X, Y)
    assert seen == [False]
    assert not watch.interrupted
    assert handlers.back()
    with pytest.raises(ExpectedError):
        make([watch, At(2, fail)]).fit(X, Y)
    assert handlers.back()
    with pytest.raises(ExpectedError):
        make([watch, type("Bad", (Callback,), {"on_start": lambda self, _: fail(0)})()]).fit(X, Y)
    assert handlers.back()


def test_the_second_signal_acts_at_once():
    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    watch = Interruptible()
    trainer = make([watch, At(3, twice)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, Y)
    assert (watch.interrupted, trainer.updates) == (True, 3)


def test_off_the_main_thread_nothing_happens(handlers):
    watch, seen = Interruptible(), []
    trainer = make([watch, At(2, lambda _: seen.append(handlers.back()))])
    thread = threading.Thread(target=trainer.fit, args=(X, Y))
    thread.start()
    thread.join()
    assert (seen, trainer.finished, watch.interrupted) == ([True], True, False)


# ---------------------------------------------------------------- progress


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ffkern.callbacks.time.monotonic", lambda: clock[0])
    trainer = make([Progress(every=8.0)], schedule="simultaneous", epochs=6)
    trainer.callbacks.insert(
        0, type("Tick", (Callback,), {"on_update": lambda *_: clock.__setitem__(0, clock[0] + 2)})()
    )
    history = trainer.fit(X, Y, (X, Y)).epochs
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    # two updates an epoch, 2 seconds each: after epochs 2, 4 and 6
    assert [line.split(", loss")[0] for line in lines] == ["all, epoch 2", "all, epoch 4", "all, epoch 6"]
    assert [line.split(", ")[-2:] for line in lines] == [
        ["33 %", "0:00:16 left"],
        ["67 %", "0:00:08 left"],
        ["100 %", "0:00:00 left"],
    ]
    first, last = history[1], history[5]
    assert f"loss {first.layers[0].loss:.4f} {first.layers[1].loss:.4f}, separation " in lines[0]
    assert f"head {100 * last.head.accuracy:.2f} %" in lines[2]
    assert f"held-out error {100 * last.validation['error']:.2f} %" in lines[2]


def test_time_left_of_a_resumed_run_counts_its_own_updates(capsys, monkeypatch):
    first = make([At(8, lambda t: t.stop())], schedule="simultaneous", epochs=6)
    first.fit(X, Y)
    clock = [1000.0]
    monkeypatch.setattr("ffkern.callbacks.time.monotonic", lambda: clock[0])
    trainer = make([Progress(every=0.0)], schedule="simultaneous", epochs=6, seed=1)
    trainer.callbacks.insert(
        0, type("Tick", (Callback,), {"on_update": lambda *_: clock.__setitem__(0, clock[0] + 1800)})()
    )
    trainer.load_state_dict(first.state_dict())
    trainer.fit(X, Y)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[-1] for line in lines] == ["1:00:00 left", "0:00:00 left"]


def test_the_last_record_always_has_a_line(capsys):
    make([Progress(every=1e9)]).fit(X, Y)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("head, epoch 3, head ")


def test_lines_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    make([Progress(every=0.0)]).fit(X, Y)
    assert len(capsys.readouterr().err.splitlines()) == 9


def on_a_terminal(monkeypatch, trainer, arguments):
    """What a pseudo-terminal receives on standard error."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    main, other = pty.openpty()
    received = []

    def drain():
        while True:
            try:
                content = os.read(main, 65536)
            except OSError:  # the other end is closed
                return
            received.append(content)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with os.fdopen(other, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            with contextlib.suppress(ExpectedError):
                trainer.fit(*arguments)
    finally:
        reader.join()
        os.close(main)
    return b"".join(received).decode()


HIDE, SHOW, ERASE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


@pytest.mark.parametrize("end", ["done", "stopped", "failed"])
def test_a_bar_leaves_the_terminal_clean(monkeypatch, end):
    threads = threading.active_count()
    action = {"done": lambda _: None, "stopped": lambda t: t.stop(), "failed": fail}[end]
    trainer = make([Progress(), At(7, action)])
    text = on_a_terminal(monkeypatch, trainer, (X, Y))
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.index(HIDE) < text.index(SHOW)
    assert "/18" in text
    assert "left" in text
    # the bar is erased: after the last text only the line's beginning and its erasure follow
    assert ERASE in text[text.rindex("/18") :]
    end_of_wait = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end_of_wait:  # the one that redraws
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_the_bar_counts_what_a_resumed_run_has_done(monkeypatch):
    first = make([At(7, lambda t: t.stop())])
    first.fit(X, Y)
    trainer = make([Progress(), At(8, lambda t: t.stop())], seed=1)
    trainer.load_state_dict(first.state_dict())
    text = on_a_terminal(monkeypatch, trainer, (X, Y))
    assert "7/18" in text
    assert " 0/18" not in text


# ---------------------------------------------------------------- a folder of one's own


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    first, second = Claim(tmp_path), Claim(tmp_path)
    first.on_start(None)
    with pytest.raises(ValueError, match="another process is training in"):
        second.on_start(None)
    second.on_close(None)  # lifts nothing that is not its own
    with pytest.raises(ValueError, match="another process is training in"):
        second.on_start(None)
    first.on_close(None)
    second.on_start(None)
    second.on_close(None)


def test_a_table_that_cannot_be_written_on_the_way_is_a_warning(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    class Fill(Callback):
        def on_epoch(self, trainer, record):
            if len(trainer.history) == 1:
                monkeypatch.setattr("ffkern.callbacks.write_whole", full)
            else:
                monkeypatch.undo()

    trainer = make([Fill(), CSVLog(tmp_path / "t.csv")])
    with pytest.warns(UserWarning, match="was not written, the table before it stays"):
        trainer.fit(X, Y)
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == 1 + len(trainer.history) > 2

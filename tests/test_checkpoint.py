"""Checkpoints: whole after any failure, refused in a sentence after any damage, never code."""

import contextlib
import errno
import io
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from nested import assert_same, at, changed, foreign, paths, same, without

import ffkern
from ffkern import _files, checkpoint, cli, data
from ffkern.checkpoint import Checkpointer
from ffkern.recipes import RECIPES
from ffkern.trainer import Callback

ROOT = Path(ffkern.__file__).parent.parent
RECIPE = RECIPES["digits"].override(layers=(4, 3), epochs=2, head="all", held_out=1000, optimiser="ema", lr=0.1)


def make(path, every=0.0, callbacks=()):
    images = RECIPE.load()
    net = RECIPE.network(images.inputs, images.classes, 1.0)
    trainer = RECIPE.trainer(net, images, [Checkpointer(path, RECIPE, images, every), *callbacks])
    return trainer, (images.train_x, images.train_y, (images.valid_x[:50], images.valid_y[:50]))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint from the middle of a run."""
    path = tmp_path_factory.mktemp("original") / "checkpoint.pt"
    trainer, arguments = make(path)
    trainer.callbacks.append(type("Stop", (Callback,), {"on_epoch": lambda self, t, r: t.stop()})())
    trainer.fit(*arguments)
    return path


def test_what_a_checkpoint_gives_back(original):
    saved = checkpoint.load(original)
    assert checkpoint.load(str(original.parent)).path == original
    images = RECIPE.load()
    trainer, arguments = make(original.with_name("again.pt"))
    trainer.callbacks.clear()
    first = next(trainer.run(*arguments))
    assert_same(saved.net.state_dict(), trainer.net.state_dict())
    assert len(saved.history) == 1
    assert saved.history[0].layers == first.layers
    assert saved.history[0].validation == first.validation
    assert (saved.recipe, saved.shape, saved.threads) == (RECIPE, (1, 8, 8), torch.get_num_threads())
    assert torch.equal(saved.scaling.mean, images.scaling.mean)
    assert torch.equal(saved.data().train_x, images.train_x)
    x = data.digits().test_x[:5]
    assert torch.equal(saved.net.goodness(saved.scaling.apply(x)), trainer.net.goodness(images.scaling.apply(x)))


# ---------------------------------------------------------------- failures while writing


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.FileIO):
    def write(self, content):
        super().write(content[: len(content) // 2])
        no_space()


def fail_at(monkeypatch, step):
    real = Path.open
    if step == "open":
        monkeypatch.setattr(Path, "open", lambda *_, **__: no_space())
    elif step == "write":
        monkeypatch.setattr(Path, "open", lambda p, mode="r", **k: Full(p, mode) if "w" in mode else real(p, mode, **k))
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    elif step == "rename":
        monkeypatch.setattr(Path, "replace", no_space)
    else:  # Ctrl-C

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename", "interrupt"])
@pytest.mark.parametrize("there", [True, False])
def test_a_failing_write_leaves_the_old_file_and_no_litter(monkeypatch, tmp_path, step, there):
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        fail_at(patch, step)
        with pytest.raises(KeyboardInterrupt if step == "interrupt" else OSError):
            _files.write_whole(path, b"new" * 1000)
    assert os.listdir(tmp_path) == (["file"] if there else [])
    assert not there or path.read_bytes() == b"old"
    _files.write_whole(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_too_large_for_the_system(tmp_path):
    """A real failing write, half-way."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _files.write_whole(path, bytes(60_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    try:
        path = disk / "checkpoint.pt"
        trainer, arguments = make(path)
        trainer.fit(*arguments)
        before = path.read_bytes()
        (disk / "filling").write_bytes(bytes(((os.statvfs(disk).f_bfree) - 1) * os.statvfs(disk).f_bsize))
        with pytest.raises(OSError, match="No space left on device"):
            trainer.callbacks[0].save(trainer)
        assert sorted(os.listdir(disk)) == ["checkpoint.pt", "filling"]
        assert path.read_bytes() == before
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_leftover_of_a_killed_process_is_overwritten(tmp_path):
    (tmp_path / "file.part").write_bytes(b"half" * 1000)
    _files.write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
def test_a_failing_save_on_the_way_is_a_warning(monkeypatch, tmp_path, step):
    path, seen = tmp_path / "checkpoint.pt", []

    class Disk(Callback):
        """Full from the third update to the last but one."""

        def on_update(self, trainer):
            if trainer.updates == 2:
                seen.append(path.read_bytes())
                fail_at(patch, step)
            if 2 < trainer.updates < trainer.total_updates - 1:
                patch.undo()
                assert os.listdir(tmp_path) == ["checkpoint.pt"]
                assert path.read_bytes() == seen[0]
                fail_at(patch, step)
            if trainer.updates == trainer.total_updates - 1:
                patch.undo()

    with monkeypatch.context() as patch:
        trainer, arguments = make(path, callbacks=[Disk()])
        with pytest.warns(UserWarning, match=r"was not saved, the one before it stays: \[Errno 28\] No space left"):
            trainer.fit(*arguments)
    assert trainer.finished
    assert checkpoint.load(path).trainer["updates"] == trainer.total_updates
    whole, arguments = make(tmp_path / "other.pt")
    whole.fit(*arguments)
    assert_same(checkpoint._read(path), checkpoint._read(tmp_path / "other.pt"))


@pytest.mark.parametrize("moment", ["start", "end"])
def test_a_failing_first_or_last_save_is_an_error(monkeypatch, tmp_path, moment):
    path = tmp_path / "checkpoint.pt"

    class Last(Callback):
        def on_update(self, trainer):
            if trainer.updates == trainer.total_updates:
                fail_at(patch, "fsync")

    with monkeypatch.context() as patch:
        trainer, arguments = make(path, callbacks=[Last()])
        if moment == "start":
            fail_at(patch, "fsync")
        with pytest.raises(OSError, match="No space left on device"):
            trainer.fit(*arguments)
    assert os.listdir(tmp_path) == ([] if moment == "start" else ["checkpoint.pt"])
    if moment == "end":
        assert checkpoint.load(path).trainer["updates"] == trainer.total_updates


@pytest.mark.parametrize("every", [0.0, 5.0, 1e9])
def test_saves_are_as_far_apart_as_asked(monkeypatch, tmp_path, every):
    clock, saves = [100.0], []

    class Tick(Callback):
        def on_update(self, trainer):
            clock[0] += 2.0

    trainer, arguments = make(tmp_path / "checkpoint.pt", every)
    trainer.callbacks.insert(0, Tick())
    monkeypatch.setattr("ffkern.checkpoint.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(_files, "write_whole", lambda path, content: saves.append(trainer.updates))
    trainer.fit(*arguments)
    total = trainer.total_updates
    expected = {0.0: range(1, total + 1), 5.0: range(3, total + 1, 3), 1e9: []}[every]
    assert saves == [0, *expected, total]


def test_a_folder_that_cannot_be_written_stops_the_command(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "--layers", "3", "--epochs", "1", "--out", str(tmp_path / "file" / "run"), "-q"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("ffkern: ") == 1
    assert "Traceback" not in err


# ---------------------------------------------------------------- damage


def refused(path, capsys=None):
    """The sentence with which a file is refused; None if it loads."""
    try:
        checkpoint.load(path)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert str(path) in text
        assert "\n" not in text
        if capsys is not None:
            assert cli.main(["eval", str(path)]) == 2
            out, err = capsys.readouterr()
            assert (out, err) == ("", f"ffkern: {text}\n")
        return text
    return None


@pytest.fixture
def spoilt(tmp_path):
    return tmp_path / "spoilt.pt"


def test_cut_short_anywhere(original, spoilt, capsys):
    content = original.read_bytes()
    lengths = {0, 1, 3, 4, 21, 22, len(content) - 1, len(content) - 22, *range(0, len(content), len(content) // 60)}
    for i, length in enumerate(sorted(lengths)):
        spoilt.write_bytes(content[:length])
        assert refused(spoilt, capsys if i % 5 == 0 else None), length


def test_single_bits_flipped(original, spoilt, capsys, seed):
    """Found, or in bytes that mean nothing: then all that is read is as it was."""
    content, rng = original.read_bytes(), random.Random(seed)
    read = checkpoint._read(original)
    records = zipfile.ZipFile(original).infolist()
    directory = content.rindex(b"PK\x05\x06")
    bits = {rng.randrange(8 * len(content)) for _ in range(160)}
    bits |= {rng.randrange(8 * (directory - 200), 8 * len(content)) for _ in range(60)}
    bits |= {8 * rng.choice(records).header_offset + rng.randrange(8 * 64) for _ in range(60)}
    found = 0
    for i, bit in enumerate(sorted(bits)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        spoilt.write_bytes(flipped)
        if refused(spoilt, capsys if i % 20 == 0 else None):
            found += 1
        else:
            assert_same(read, checkpoint._read(spoilt), f"bit {bit}")
    assert found > 100


def test_every_record_is_under_its_checksum(original, spoilt):
    content = original.read_bytes()
    for record in zipfile.ZipFile(original).infolist():
        name_length, extra = struct.unpack("<HH", content[record.header_offset + 26 : record.header_offset + 30])
        begin = record.header_offset + 30 + name_length + extra
        for place in {begin, begin + record.file_size // 2, begin + record.file_size - 1} if record.file_size else ():
            flipped = bytearray(content)
            flipped[place] ^= 4
            spoilt.write_bytes(flipped)
            assert refused(spoilt), (record.filename, place - begin)


def test_random_bytes(spoilt, capsys, seed):
    rng = random.Random(seed)
    for i in range(60):
        start = rng.choice([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"PK\x05\x06" + bytes(18)])
        spoilt.write_bytes(start + rng.randbytes(rng.choice([0, 1, 18, 100, 5000])))
        assert refused(spoilt, capsys if i % 10 == 0 else None)


def archive(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in records.items():
            out.writestr(name, content)


def records_of(path):
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Anything:
    def __reduce__(self):
        return getattr, (str, "join")


def test_foreign_files(original, spoilt, capsys, tmp_path):
    marker = tmp_path / "it ran"
    record = "archive/data.pkl"

    def saved(value, **options):
        return lambda: torch.save(value, spoilt, **options)

    files = {
        "a text": lambda: spoilt.write_text("checkpoint"),
        "a zip": lambda: archive(spoilt, {"readme": b"hello"}),
        "an empty zip": lambda: archive(spoilt, {}),
        "a tensor": saved(torch.zeros(3)),
        "a list": saved([1, 2]),
        "nothing": saved(None),
        "other keys": saved({"model": torch.zeros(3), "epoch": 3}),
        "a module": saved(torch.nn.Linear(2, 2)),
        "another format": saved({**checkpoint._read(original), "format": "other"}),
        "the old format of torch": saved(checkpoint._read(original), _use_new_zipfile_serialization=False),
        "a pickle": lambda: spoilt.write_bytes(pickle.dumps(checkpoint._read(original)["recipe"])),
        "a command in a pickle": lambda: spoilt.write_bytes(pickle.dumps(Command(marker))),
        "a command": saved(Command(marker)),
        "a command inside": saved({**checkpoint._read(original), "note": Command(marker)}),
        "a name": saved({**checkpoint._read(original), "note": Anything()}),
        "a command as the pickle": lambda: archive(
            spoilt, {**records_of(original), record: pickle.dumps(Command(marker), 2)}
        ),
        "compressed": lambda: archive(spoilt, records_of(original), zipfile.ZIP_DEFLATED),
        "without a record": lambda: archive(
            spoilt, {k: v for k, v in records_of(original).items() if not k.endswith("/data/3")}
        ),
        "without tensors": lambda: archive(
            spoilt, {k: v for k, v in records_of(original).items() if "/data/" not in k}
        ),
    }
    assert record in records_of(original)
    for name, write in files.items():
        spoilt.unlink(missing_ok=True)
        write()
        assert refused(spoilt, capsys), name
        assert not marker.exists(), name
    # the same writers, with nothing wrong
    archive(spoilt, records_of(original))
    assert refused(spoilt) is None
    torch.save(checkpoint._read(original), spoilt)
    assert refused(spoilt) is None


def test_no_file(tmp_path, capsys):
    for path in (tmp_path / "none.pt", tmp_path / "none" / "none.pt"):
        assert "there is no checkpoint" in refused(path, capsys)
    with pytest.raises(
        FileNotFoundError, match=f"there is no checkpoint {tmp_path / 'checkpoint.pt'}; expected one that"
    ):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("version", [0, 1, None, "1", 1.5, torch.zeros(3)])
def test_another_version(original, spoilt, capsys, version):
    checkpoint._write(spoilt, {**checkpoint._read(original), "version": version})
    assert f"expected version {checkpoint.VERSION}, which ffkern " in refused(spoilt, capsys)


def test_a_foreign_value_anywhere(original, spoilt, capsys):
    """The trainer's part is taken apart in test_resume.py."""
    read = checkpoint._read(original)
    tried = 0
    for path in paths(read):
        if path[0] in ("ffkern", "version") or (path[0] == "trainer" and len(path) > 2):
            continue
        for other in foreign(at(read, path)):
            if path == ("recipe", "folder") and other == "text":  # any folder will do
                continue
            checkpoint._write(spoilt, changed(read, path, other))
            assert refused(spoilt, capsys if tried % 25 == 0 else None), (path, other)
            tried += 1
    assert tried > 200


def test_a_missing_key_anywhere(original, spoilt):
    read = checkpoint._read(original)
    tried = 0
    for path in paths(read):
        if path == ("ffkern",) or (path[0] == "trainer" and len(path) > 2):
            continue
        torch.save(without(read, path), spoilt)
        assert refused(spoilt), path
        tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    "changes",
    [
        {("network", "inputs"): 10**9},
        {("network", "inputs"): 2**62},
        {("network", "inputs"): -5},
        {("network", "inputs"): 63},
        {("network", "classes"): 9},
        {("network", "classes"): 0},
        {("network", "shape"): (1, 8, 9)},
        {("network", "shape"): (0, 8, 8)},
        {("recipe", "layers"): [10**9, 3]},
        {("recipe", "layers"): [4] * 50},
        {("recipe", "layers"): []},
        {("recipe", "batch_size"): 51},
        {("recipe", "optimiser"): "sgd"},
        {("recipe", "decay"): "none"},
        {("threads",): 0},
        {("threads",): -3},
        # few numbers that pose as many: a network of these sizes would take 16 GB
        {
            ("network", "inputs"): 10**9 - 10,
            ("network", "shape"): (1, 1, 10**9 - 10),
            ("trainer", "net", "layers.0.weight"): torch.zeros(1).expand(4, 10**9),
            ("scaling", "mean"): torch.tensor(0.0),
        },
        {("trainer", "net", "layers.1.weight"): torch.zeros(3, 4, dtype=torch.float64)},
        {("trainer", "net", "layers.1.weight"): torch.zeros(4, 3).T},
        {("trainer", "generator"): torch.zeros(10, dtype=torch.uint8)},
        {("trainer", "updates"): -1},
        {("trainer", "in_record"): 100},
    ],
    ids=str,
)
def test_content_that_does_not_fit_together(original, spoilt, capsys, changes):
    content = checkpoint._read(original)
    for path, value in changes.items():
        content = changed(content, path, value)
    checkpoint._write(spoilt, content)
    begin = time.perf_counter()
    assert refused(spoilt, capsys)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("field", [20, 24])  # compressed and plain size in the directory
@pytest.mark.parametrize("size", [0, 1, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF])
def test_sizes_declared_in_the_archive(original, spoilt, field, size):
    content, read = original.read_bytes(), checkpoint._read(original)
    place = -1
    for _ in zipfile.ZipFile(original).infolist():
        place = content.index(b"PK\x01\x02", place + 1)
        altered = bytearray(content)
        altered[place + field : place + field + 4] = struct.pack("<I", size)
        spoilt.write_bytes(altered)
        assert refused(spoilt) or same(read, checkpoint._read(spoilt))


# ---------------------------------------------------------------- kill -9

PATIENCE = 600  # seconds; a busy machine may take long to start a process
KILLS = int(os.environ.get("FFKERN_TEST_KILLS") or 4)
RUN = ["--layers", "10,8", "--epochs", "6", "--head", "all", "--held-out", "500", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    assert cli.main(["train", *RUN, "--out", str(folder)]) == 0
    torch.set_num_threads(before)
    return folder


@contextlib.contextmanager
def started(*argv):
    """`ffkern train` in a process of its own, which never outlives the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ffkern", "train", *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, sign):
    end = time.monotonic() + PATIENCE
    while not sign() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else None


def test_kill_9_at_any_moment(tmp_path, uninterrupted, seed):
    """Run, kill, resume, kill, ... to the end; then once more, until there were enough kills."""
    rng, kills, caught = random.Random(seed), 0, 0
    while kills < KILLS:
        folder = tmp_path / str(kills)
        path, done = folder / "checkpoint.pt", 0
        while True:
            argv = ["--resume", str(folder), "-q"] if path.exists() else [*RUN, "--out", str(folder)]
            with started(*argv, "--save-every", "0") as process:
                if kills < KILLS:
                    before = stamp(path)
                    early = before is None and rng.random() < 0.3
                    wait_for(process, folder.exists if early else lambda p=path, b=before: stamp(p) != b)
                    time.sleep(rng.uniform(0, 0.01 if early else 0.4))
                    process.kill()
                out, err = process.communicate(timeout=PATIENCE)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, err
            kills += 1
            names = {"checkpoint.pt", "checkpoint.pt.part", "result.json", "result.json.part"}
            assert set(os.listdir(folder)) <= names
            caught += (folder / "checkpoint.pt.part").exists()
            if path.exists():
                saved = checkpoint.load(folder)
                assert saved.trainer["updates"] >= done
                done = saved.trainer["updates"]
        assert "test error" in out
        assert sorted(os.listdir(folder)) == ["checkpoint.pt", "result.json"]
        assert_same(checkpoint._read(uninterrupted / "checkpoint.pt"), checkpoint._read(path))
    print(f"{kills} kills, {caught} of them while a checkpoint was being written")


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, uninterrupted, threads, capsys):
    folder = tmp_path / "run"
    path = folder / "checkpoint.pt"
    with started(*RUN, "--out", str(folder), "--save-every", "0") as process:
        wait_for(process, path.exists)
        first = stamp(path)
        wait_for(process, lambda: stamp(path) != first)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert err.startswith("ffkern: stopped after ")
    assert err.endswith(f" % of the updates; saved. `ffkern train --resume {folder}` goes on\n")
    assert os.listdir(folder) == ["checkpoint.pt"]
    total = checkpoint._read(uninterrupted / "checkpoint.pt")["trainer"]["updates"]
    assert 0 < checkpoint.load(folder).trainer["updates"] < total
    assert cli.main(["train", "--resume", str(folder), "-q"]) == 0
    assert_same(checkpoint._read(uninterrupted / "checkpoint.pt"), checkpoint._read(folder / "checkpoint.pt"))

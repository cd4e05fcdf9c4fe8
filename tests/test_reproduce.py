"""``ffkern reproduce`` and docs/reproduction.py, on recipes that take a second."""

import importlib
import importlib.util
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interrupts import interrupt_after
from nested import assert_same

import ffkern
from ffkern import checkpoint, cli
from ffkern.cli import _settings
from ffkern.recipes import RECIPES, Recipe
from ffkern.recipes.budget import MARGIN, Pace
from ffkern.recipes.questions import QUESTIONS, Question
from ffkern.trainer import Trainer, evaluate

DOCS = Path(__file__).resolve().parents[1] / "docs"
module = importlib.import_module("ffkern.cli.reproduce")
importlib.import_module("ffkern.cli.train")  # its options name the recipes that there are when it is imported
ONE = replace(
    RECIPES["digits"], name="one", source="a book", published={"error": 50.0, "error_softmax": 20.0}, layers=(12, 9),
    epochs=3, held_out=300, negatives="hard",
)  # fmt: skip
TWO = replace(ONE, name="two", published={"error": 30.0}, layers=(9,), epochs=2, negatives="uniform", held_out=0)
GONE = replace(TWO, name="gone", dataset="mnist", label="overlay")


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path, threads):
    """No recipes but small ones, one of them without its data."""
    for known in (RECIPES, QUESTIONS):
        for name in known.keys() - {"digits"}:  # which has no published figure
            monkeypatch.delitem(known, name)
    for recipe in (ONE, GONE, TWO):
        monkeypatch.setitem(RECIPES, recipe.name, recipe)
    monkeypatch.setitem(QUESTIONS, "greed", Question("Is greed good?", replace(TWO, name="digits", schedule="greedy")))
    monkeypatch.setitem(QUESTIONS, "head", Question("Does a head help?", replace(ONE, name="digits", epochs=1)))
    monkeypatch.setenv("FFKERN_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(module, "MEASURED_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(module, "drawn", lambda saved, folder: [folder.mkdir()])


def run(capsys, *argv):
    code = cli.main(["reproduce", *argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, " ".join(err.replace("│", " ").split())


def kept(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(Trainer, "run", refuse)


def row(out, name):
    return next(line for line in out.splitlines() if line.strip().startswith(name))[len(name) + 1 :].split()


# ---------------------------------------------------------------- one recipe


def test_measured_beside_published(capsys, monkeypatch, no_pictures):
    code, out, err = run(capsys, "one", "--seeds", "0,4", "--threads", "1")
    assert code == 0
    assert (
        "one, seed 0 source a book published 50.00 % by goodness of all layers, 20.00 % by softmax head measured" in err
    )
    assert "error on the 450 test images, once, at the last epoch (3), by goodness of all layers, all but the" in err
    assert "time about" in err
    assert "changed" not in out + err
    tests = []
    for seed in (0, 4):
        place = Path("runs/reproduce/one") / f"seed-{seed}"
        saved, result = checkpoint.load(place), kept(place)
        assert saved.recipe == ONE.override(seed=seed)
        assert result["command"] == f"ffkern reproduce one --seeds {seed} --threads 1"
        assert result["finished"] is True
        images = saved.data()
        tests.append(evaluate(saved.net, images.test_x, images.test_y))
        assert result["test"] == tests[-1]
        assert len((place / "metrics.csv").read_text().splitlines()) == 4
    for name, words, published in (
        ("error", "goodness of all layers", 50.0),
        ("error_but_first", "all but the first", None),
        ("error_softmax", "softmax head", 20.0),
    ):
        first, second = (100 * test[name] for test in tests)
        mean = (first + second) / 2
        cells = [f"{mean:.2f}", "%", f"{first:.2f}", "%", f"{second:.2f}", "%"]
        cells = ["-", *cells] if published is None else [f"{published:.2f}", "%", *cells, f"{mean - published:+.2f}"]
        assert row(out, words) == cells
    no_training(monkeypatch)
    code, again, err = run(capsys, "one", "--seeds", "0,4")
    assert (code, again) == (0, out)
    assert "one, seed 4: done before, in runs/reproduce/one/seed-4" in err
    assert run(capsys, "one", "--seeds", "0,4", "-q") == (0, out, "")


@pytest.mark.parametrize("updates", [1, 40])
def test_the_same_command_goes_on_with_the_same_bits(capsys, monkeypatch, no_pictures, updates):
    """And they are those of ``ffkern train``, which measures nothing beforehand."""
    argv = ["one", "--out", "runs", "--threads", "1"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, updates)
        code, out, err = run(capsys, *argv)
    assert (code, out) == (130, "")
    assert err.endswith(f"ffkern: stopped after {updates / 0.63:.1f} % of the updates; saved. The same command goes on")
    code, _, err = run(capsys, "--list", "--out", "runs")
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert f"goes on after {updates / 0.63:.1f} % of the updates" in err
    whole = ["train", "--layers", "12,9", "--epochs", "3", "--held-out", "300", "--negatives", "hard", "--threads", "1"]
    assert cli.main([*whole, "--out", "whole", "-q"]) == 0
    first, second = (checkpoint._read(Path(folder) / "checkpoint.pt") for folder in ("whole", "runs/one/seed-0"))
    for content in (first, second):
        for name in ("name", "source", "published"):
            content["recipe"].pop(name)
    assert_same(first, second)
    assert kept("whole")["test"] == kept("runs/one/seed-0")["test"]


def test_a_run_with_other_settings_is_refused(capsys, monkeypatch, no_pictures):
    assert run(capsys, "two", "--seeds", "0,1", "-q")[0] == 0
    monkeypatch.setitem(RECIPES, "two", TWO.override(epochs=4, lr=0.5))
    no_training(monkeypatch)
    code, out, err = run(capsys, "two", "--seeds", "3,1")  # before seed 3 is trained
    assert (code, out) == (2, "")
    assert err == (
        "ffkern: runs/reproduce/two/seed-1 holds a run with other settings (epochs 2 there and 4 here, lr 0.003 there "
        "and 0.5 here); expected the same, or another --out"
    )
    monkeypatch.setitem(RECIPES, "two", TWO.override(folder="elsewhere"))  # not what was learnt
    assert run(capsys, "two", "--seeds", "0,1", "-q")[0] == 0
    Path("runs/reproduce/two/seed-1/result.json").write_text("{")
    code, _, err = run(capsys, "two", "--seeds", "1")
    assert (code, err) == (
        2, "ffkern: runs/reproduce/two/seed-1/result.json is damaged; remove it, and the run is evaluated again"
    )  # fmt: skip


def test_changed_settings_have_a_folder_of_their_own(capsys, no_pictures):
    argv = ["two", "--layers", "6,5", "--lr", "0.01", "--epochs", "2"]  # two epochs are the recipe's own
    code, out, err = run(capsys, *argv)
    assert code == 0
    place = Path("runs/reproduce/two+layers=6,5+lr=0.01/seed-0")
    assert checkpoint.load(place).recipe == TWO.override(layers=(6, 5), lr=0.01)
    assert "changed: layers 6,5 instead of 9, lr 0.01 instead of 0.003" in out
    assert "changed layers 6,5 instead of 9, lr 0.01 instead of 0.003" in err
    assert kept(place)["command"].startswith("ffkern reproduce two --layers 6,5 --lr 0.01 --seeds 0 --threads ")
    assert run(capsys, "two", "-q")[0] == 0
    assert sorted(path.name for path in Path("runs/reproduce").iterdir()) == ["two", "two+layers=6,5+lr=0.01"]


def test_many_changes_have_a_folder_with_a_short_name():
    changed = {"folder": "x", "layers": (7,) * 99, "lr": 0.25, "dataset": "/a/" + "b" * 200 + ".npz"}
    one, other = (module._Task.of("one", changed | {"lr": lr}).folder for lr in (0.25, 0.5))
    assert one == module._Task.of("one", changed).folder != other
    assert one.startswith("one+dataset=bbbb")
    assert len(one) <= len("one") + 150
    plain = {"lr": 0.25, "batch_size": 51, "temperature": 2.5, "epochs": 31}
    assert sorted(module._Task.of("one", plain).folder.split("+")) == [
        "batch_size=51",
        "epochs=31",
        "lr=0.25",
        "one",
        "temperature=2.5",
    ]


def test_the_command_names_a_file_without_detours(tmp_path):
    assert _settings.given({"dataset": "sub/../x.npz", "folder": "../" + tmp_path.name}) == {
        "dataset": str(tmp_path.resolve() / "x.npz"),
        "folder": str(tmp_path.resolve()),
    }


def test_ctrl_c_before_training_is_an_interruption_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "measured", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    code, out, _ = run(capsys, "two")
    assert (code, out, list(tmp_path.iterdir())) == (130, "", [])


def test_a_diverged_run_is_exit_code_1(capsys, no_pictures):
    for _ in range(2):  # the second time it is only shown
        code, _, err = run(capsys, "two", "--lr", "1e30", "-q")
        assert code == 1
        assert "a loss is not finite" in err


def test_pictures(capsys, monkeypatch):
    assert run(capsys, "two", "--epochs", "1", "--seeds", "3", "-q")[0] == 0
    pictures = Path("runs/reproduce/two+epochs=1/seed-3/plots")
    assert {path.stem for path in pictures.iterdir()} >= {"curves", "goodness", "activity", "fields"}
    # Without labels there is no goodness of right and wrong ones.
    unlabelled = replace(ONE, label="none", negatives="hybrid", scaling="none", published={"error_softmax": 1.0})
    monkeypatch.setitem(RECIPES, "one", unlabelled)
    code, out, err = run(capsys, "one", "--epochs", "1")
    assert code == 0
    assert "at the last epoch (1), by softmax head" in err
    assert row(out, "softmax head")[:2] == ["1.00", "%"]
    assert "goodness" not in out
    pictures = Path("runs/reproduce/one+epochs=1/seed-0/plots")
    found = {path.stem for path in pictures.iterdir()}
    assert "curves" in found
    assert not found & {"goodness", "activity"}


def test_patience_looks_at_the_only_answer_of_a_network_without_labels(capsys):
    argv = ["--label", "none", "--negatives", "hybrid", "--scaling", "none", "--layers", "9", "--epochs", "9"]
    still = ["--lr", "0", "--head-lr", "0", "--held-out", "300", "--patience", "2", "-q", "--json", "-"]
    assert cli.main(["train", *argv, *still]) == 0
    assert len(json.loads(capsys.readouterr().out)["epochs"]) == 3


# ---------------------------------------------------------------- several


def test_all_goes_on_when_one_fails(capsys, no_pictures, tmp_path):
    code, out, err = run(capsys, "all", "--json", "found.json", "-q")
    assert code == 1
    assert err == f"ffkern: gone failed: mnist is not in {tmp_path / 'no data'}: run `ffkern data fetch mnist`"
    assert out.index("one: a book") < out.index("two: a book")
    found = json.loads(Path("found.json").read_text())
    assert list(found["failed"]) == ["gone"]
    assert [entry["name"] for entry in found["done"]] == ["one", "two"]
    result = kept("runs/reproduce/one/seed-0")
    del result["epochs"]
    assert found["done"][0]["runs"] == [result]
    assert found["done"][0]["measured"] == result["test"]
    code, out, err = run(capsys, "gone", "two", "--json", "-", "-q")
    assert code == 1
    assert json.loads(out)["done"] == found["done"][1:]
    assert run(capsys, "gone")[0] == 2  # alone it is a mistake like any other


def test_the_most_valuable_comes_first(monkeypatch):
    for name in reversed(module.ORDER):
        monkeypatch.setitem(RECIPES, name, replace(ONE, name=name))
    monkeypatch.setitem(RECIPES, "digits", replace(ONE, name="digits", published={}))
    assert module.published() == [*module.ORDER, "one", "gone", "two"]


def test_list(capsys, monkeypatch, no_pictures):
    code, out, err = run(capsys, "--list")
    assert (code, err) == (0, "")
    assert row(out, "one")[-3:] == ["yes", "not", "begun"]
    assert row(out, "gone")[-3:] == ["no", "not", "begun"]
    assert "digits, 3 epochs, layers 12,9" in out
    assert "a book" in out
    assert run(capsys, "one", "-q")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 50)
        assert run(capsys, "one", "--seeds", "1", "-q")[0] == 130
    lines = run(capsys, "--list")[1].splitlines()
    assert any(line.startswith(" one ") and line.rstrip().endswith("seed-0 done") for line in lines)
    assert any(line.rstrip().endswith("seed-1 2 of 3 epochs") for line in lines)


def test_the_list_shows_changed_runs_too(capsys, monkeypatch, no_pictures):
    monkeypatch.setitem(RECIPES, "one", ONE.override(epochs=1))
    monkeypatch.setitem(RECIPES, "one-more", replace(ONE, name="one-more"))
    monkeypatch.setattr(module.budget, "scale", lambda recipe, *_, **__: recipe)
    assert run(capsys, "one", "--lr", "0.01", "-q")[0] == 0
    assert run(capsys, "one", "--budget", "9m", "--seeds", "3", "-q")[0] == 0
    assert run(capsys, "one-more", "--epochs", "1", "-q")[0] == 0
    interrupt_after(monkeypatch, 30)
    assert run(capsys, "one", "--epochs", "2", "-q")[0] == 130
    assert run(capsys, "one", "--epochs", "0", "--seeds", "7", "-q")[0] == 0
    Path("runs/reproduce/one+epochs=2/seed-1").mkdir()
    for name in ("checkpoint.pt", "metrics.csv"):
        Path("runs/reproduce/one+epochs=2/seed-1", name).write_text("x")
    out = run(capsys, "--list")[1]
    assert "digits, 1 epoch, layers 12,9" in out
    ends = [" ".join(line.split()).partition("+")[2] for line in out.splitlines() if "+" in line]
    assert ends == [
        "budget=9m seed-3 done",
        "epochs=0 seed-7 done",
        "epochs=2 seed-0 1 of 2 epochs",
        "epochs=2 seed-1 damaged",
        "lr=0.01 seed-0 done",
        "epochs=1 seed-0 done",  # of one-more
    ]


def test_questions(capsys, monkeypatch):
    argv = ["questions", "--seeds", "0,1"]
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert "questions/greed, seed 1: Is greed good?" in err
    places = {
        (name, seed): Path(f"runs/reproduce/questions/{name}/seed-{seed}") for name in QUESTIONS for seed in (0, 1)
    }
    assert not list(Path("runs").rglob("plots"))
    for name, question in QUESTIONS.items():
        cells = row(out, question.words)
        assert cells[:2] == ["fused", "kernels"]
        results = [kept(places[name, seed]) for seed in (0, 1)]
        assert results[1]["command"] == "ffkern reproduce questions --seeds 1 --threads 1"
        errors = [100 * result["test"]["error"] for result in results]
        assert cells[2:7] == [f"{sum(errors) / 2:.2f}", "%", f"({min(errors):.2f}", "-", f"{max(errors):.2f})"]
        assert (cells[-1] == "-") == (name == "greed")  # it has no head
    no_training(monkeypatch)
    assert run(capsys, *argv)[1] == out


def test_questions_stay_what_they_ask(capsys, monkeypatch):
    """Layers are as wide as the words say, and what a question has chosen is its own."""
    base = replace(TWO, name="base", layers=(400,), epochs=4)
    monkeypatch.setattr(module, "BASE", base)
    monkeypatch.setitem(QUESTIONS, "greed", Question("Is greed good?", replace(base, schedule="greedy")))
    monkeypatch.setitem(QUESTIONS, "head", Question("Does a head help?", replace(base, lr=0.01, negatives="hard")))
    for option, value in {"schedule": "simultaneous", "lr": "0.01", "negatives": "all", "layers": "9"}.items():
        code, out, err = run(capsys, "questions", f"--{option}", value, "-q")
        assert (code, out) == (2, "")
        assert f"Invalid value for --{option}: {value}; expected none with questions, for questions/" in err
    assert not Path("runs").exists()
    monkeypatch.setattr(module, "measured", lambda recipe, images, pictures: Pace(0.0, 1e3 * len(recipe.negatives)))
    code, out, err = run(capsys, "questions", "--batch-size", "60", "--budget", "40000s", "-q")
    assert (code, err) == (0, "")
    assert "changed: batch size 60 instead of 50, epochs 2 instead of 4 (questions/greed)" in out
    assert out.count("changed: ") == 1 + ("changed: batch size 60 instead of 50 (questions/head)" in out)
    for name in QUESTIONS:
        place = f"runs/reproduce/questions/{name}+batch_size=60+budget=40000s-of-2/seed-0"
        assert kept(place)["recipe"]["layers"] == [400]
    code, out, _ = run(capsys, "questions", "--epochs", "1", "-q")
    assert code == 0
    assert out.startswith("changed: epochs 1 instead of 4\n")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "Invalid value for NAME...: none; expected one, gone, two, all, questions, or --list"),
        (["digits"], "'digits' has no published figure; `ffkern train --recipe digits` trains it"),
        (["--list", "--budget", "10s"], "Invalid value for --budget: 10s; expected none with --list"),
        (["--list", "--json", "-"], "Invalid value for --json: -; expected none with --list"),
        (["--list", "--threads", "2"], "Invalid value for --threads: 2; expected none with --list"),
        (["--list", "--head-lr", "2"], "Invalid value for --head-lr: 2.0; expected none with --list"),
        (["three"], "Invalid value for NAME...: 'three'; expected one, gone, two, all or questions"),
        (["one", "--list"], "Invalid value for NAME...: one; expected none with --list"),
        (["one", "--seeds", "0,0"], "Invalid value for --seeds: '0,0'; expected different numbers such as 0,1,2"),
        (["one", "--seeds", "-1"], "'-1'; expected different numbers"),
        (["one", "--seeds", ""], "''; expected different numbers"),
        (["one", "--seed", "3"], "No such option: --seed"),
        (["one", "--budget", "10"], "Invalid value for --budget: '10'; expected a time such as 90s, 10m or 2h"),
        (["one", "--budget", "0s"], "'0s'; expected a time"),
        (["one", "--budget", "٣s"], "'٣s'; expected a time"),
        (["one", "--epochs", "-1"], "ffkern: epochs is -1; expected an integer of at least 0"),
        (["two", "--patience", "3"], "ffkern: patience is 3; expected held-out images to watch (--held-out)"),
        (["two", "--budget", "0.001s"], "ffkern: the budget leaves 0 s for two; expected at least"),
        (["one", "--json", "none/x.json"], "'none/x.json'; expected '-' or a file in a folder that exists"),
        (["gone", "--patience", "2"], "ffkern: patience is 2; expected held-out images"),  # before it looks for any
        (["two", "--seeds", "0,1", "--budget", "0.5s"], "; its share of the budget, 0 s / 2 seeds"),
        (["gone"], "ffkern: mnist is not in"),
    ],
)
def test_mistakes_give_one_message_and_leave_nothing(capsys, tmp_path, argv, text):
    code, out, err = run(capsys, *argv, "-q")
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("ffkern: ") + err.count("─ Error ─") == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("name", ["one", "two", "greedy", "greedy-batch"])
@pytest.mark.parametrize("pictures", [True, False])
def test_the_pace_counts_what_a_run_does(monkeypatch, name, pictures):
    """On a clock that only updates (0.5 s each) and evaluations (1 ms an image) move."""
    greedy = TWO.override(layers=(5, 4, 3), schedule="greedy", head="all", held_out=300)
    batch = TWO.override(
        layers=(5, 4), schedule="greedy-batch", decay="none", iterations=250, batch_size=400, held_out=100
    )
    recipe = {"one": ONE, "two": TWO, "greedy": greedy, "greedy-batch": batch}[name]
    images, clock, done = recipe.load(), [0.0], []

    def fit(self, x, y):
        self.updates = self._count_updates(len(x))
        done.append(self.updates)
        clock[0] += 0.5 * self.updates

    def evaluated(net, x, y):
        clock[0] += 1e-3 * len(x)

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr(module, "evaluate", evaluated)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = module.measured(recipe, images, pictures=pictures)
    epoch = {
        "one": 0.5 * 21 + 0.3,  # 1047 images in batches of 50, 300 held out
        "two": 0.5 * 27,
        "greedy": 4 * (0.5 * 21 + 0.3),  # three layers and the head, one after the other
        "greedy-batch": 2
        * 4
        * 2
        * (0.5 + 0.1 / 100),  # two passes, four mini-batches, two layers; evaluated every hundred
    }[name]
    assert found.unit == pytest.approx(epoch, rel=1e-9)
    assert found.fixed == pytest.approx(0.45 * 1.2 + module.PICTURES_SECONDS if pictures else 0.45, rel=1e-9)
    assert max(done) <= module.MEASURED_UPDATES * 4


def test_a_budget_scales_and_stays_as_it_was_chosen(capsys, monkeypatch, no_pictures):
    monkeypatch.setattr(module, "measured", lambda recipe, images, pictures: Pace(0.0, 10.0))
    monkeypatch.setitem(RECIPES, "two", TWO.override(epochs=90))
    argv = ["two", "--budget", "10m", "--seeds", "0,1"]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    seen = checkpoint.load("runs/reproduce/two+budget=10m-of-2/seed-1").recipe
    assert 20 <= seen.epochs <= (1 - MARGIN) * 300 / 10  # of five minutes each, less the moment that loading took
    assert seen == TWO.override(epochs=seen.epochs, seed=1)
    assert f"changed: epochs {seen.epochs} instead of 90" in out
    monkeypatch.setattr(module, "measured", lambda recipe, images, pictures: Pace(0.0, 2.0))  # a better day
    code, out, _ = run(capsys, "two", "--budget", "10m", "--seeds", "0,1")
    assert f"changed: epochs {seen.epochs} instead of 90" in out
    shutil.rmtree("runs/reproduce/two+budget=10m-of-2/seed-1")
    assert run(capsys, *argv, "-q")[1] == out  # seed 1 is trained as seed 0 was
    shutil.rmtree("runs/reproduce/two+budget=10m-of-2/seed-0")
    assert run(capsys, "two", "--budget", "10m", "--seeds", "2,0", "-q")[0] == 0  # and other seeds too
    assert checkpoint.load("runs/reproduce/two+budget=10m-of-2/seed-2").recipe.epochs == seen.epochs
    code, out, _ = run(capsys, "two", "--budget", "10m")
    assert code == 0
    assert "changed" not in out  # all of it fits
    assert checkpoint.load("runs/reproduce/two+budget=10m/seed-0").recipe == RECIPES["two"]


def test_a_budget_is_shared_among_those_left(capsys, monkeypatch, no_pictures):
    shares = []

    def scale(recipe, seconds, pace, narrow):
        assert narrow
        shares.append(seconds)
        return recipe.override(epochs=1)

    monkeypatch.setattr(module.budget, "scale", scale)
    assert run(capsys, "all", "--budget", "60m", "-q")[0] == 1  # `gone` takes no time: its share goes to `two`
    assert shares == [pytest.approx(1200, abs=5), pytest.approx(3600, abs=60)]
    assert sorted(path.name for path in Path("runs/reproduce").iterdir()) == [
        "one+budget=60m-of-3",
        "two+budget=60m-of-3",
    ]


def test_the_last_give_way_to_the_first(capsys, monkeypatch, no_pictures):
    """Ten recipes of at least a minute in four: each with what is left, the last ones without."""
    names = [f"r{i}" for i in range(10)]
    for name in names:
        monkeypatch.setitem(RECIPES, name, replace(TWO, name=name))
    least = 60 * (1 - MARGIN) - 1  # a second for loading
    monkeypatch.setattr(module, "measured", lambda recipe, images, pictures: Pace(least - 0.001, 0.001))
    code, out, err = run(capsys, *names, "--budget", "245s", "--json", "-", "-q")
    found = json.loads(out)
    assert code == 1
    assert [entry["name"] for entry in found["done"]] == names[:4]
    assert found["left_out"] == names[4:]
    assert not found["failed"]
    more = int(err.split("at least ")[1].split(" s more")[0])
    assert err == f"ffkern: left out: {', '.join(names[4:])}; the budget is 245s, expected at least {more} s more"
    assert 10 * 59 - 245 <= more <= 10 * 60 - 245
    # One that needs more than all of it keeps nobody out.
    monkeypatch.setattr(
        module, "measured", lambda recipe, images, pictures: Pace(1e4 if recipe.name == "r0" else 0.0, 0.001)
    )
    code, out, err = run(capsys, *names[:3], "--budget", "244s", "--json", "-", "-q")
    found = json.loads(out)
    assert [entry["name"] for entry in found["done"]] == names[1:3]
    assert not found["left_out"]
    assert "the budget leaves 81 s for r0; expected at least 117" in found["failed"]["r0"]
    assert found["failed"]["r0"].endswith("; its share of the budget, 244 s / 3 recipes")


def test_nothing_is_measured_once_the_budget_is_used_up(capsys, monkeypatch, no_pictures):
    seen = []

    def measured(recipe, images, pictures):
        seen.append(recipe.name)
        return Pace(9.0, 1.0)

    monkeypatch.setattr(module, "measured", measured)
    code, out, err = run(capsys, "one", "two", "--budget", "0.001s", "-q")
    assert (code, out) == (1, "")
    assert seen == ["one"]
    assert "one failed: the budget leaves 0 s for one; expected at least 12" in err
    assert err.endswith("ffkern: two failed: the budget was used up before its turn")


def test_a_run_keeps_to_its_budget(capsys, monkeypatch, no_pictures):
    """An endless recipe takes most of its time and no more, by a clock that only the work moves."""
    clock = SimpleNamespace(now=0.0)

    def takes(owner, name, seconds):
        real = getattr(owner, name)

        def timed(*args, **kwargs):
            clock.now += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)

    takes(ffkern.FFNet, "step", 0.02)
    takes(module, "evaluate", 0.5)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now))
    monkeypatch.setattr(module, "PICTURES_SECONDS", 0)
    monkeypatch.setitem(RECIPES, "two", TWO.override(epochs=10**6))
    assert run(capsys, "two", "--budget", "30s", "-q")[0] == 0
    assert 0.7 * 30 < clock.now < 30
    assert checkpoint.load("runs/reproduce/two+budget=30s/seed-0").recipe.epochs > 1


# ---------------------------------------------------------------- docs/reproduction.py


def script():
    spec = importlib.util.spec_from_file_location("reproduction", DOCS / "reproduction.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def page(*names):
    parts = "\n".join(f"Prose of {name}.\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->" for name in names)
    return f"# Page\n\n{parts}\nThe end.\n"


def test_the_page_shows_what_the_runs_say(capsys, monkeypatch, no_pictures):
    docs = Path("docs")
    docs.mkdir()
    (docs / "reproduction.md").write_text(page("results", "one", "two", "gone", "questions"))
    assert run(capsys, "one", "--seeds", "0,1", "-q")[0] == 0
    assert run(capsys, "two", "--epochs", "1", "-q")[0] == 0
    assert run(capsys, "questions", "-q")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 50)
        assert run(capsys, "one", "--seeds", "2", "-q")[0] == 130
    made = script()
    monkeypatch.setattr(made, "TO_REACH", {"one": {"error": 51.5}})
    made.main(Path("runs/reproduce"), docs)
    text = (docs / "reproduction.md").read_text()
    results = [kept(f"runs/reproduce/one/seed-{seed}") for seed in (0, 1)]
    first, second = (100 * result["test"]["error"] for result in results)
    line = next(line for line in text.splitlines() if line.startswith("| `one` |"))
    assert "| all layers<br>softmax head | 50.00 %<br>20.00 % | 51.50 %<br>- |" in line
    assert f"| {(first + second) / 2:.2f} % ({first:.2f}, {second:.2f})<br>" in line
    held = checkpoint.load("runs/reproduce/one/seed-2").history[-1].validation["error"]
    unfinished = f"seed 2: epoch 2 of 3, can be resumed, {100 * held:.2f} % of held-out images by all layers"
    assert f"done; {unfinished}" in line
    assert f"- {unfinished}" in text.split("one:begin")[1].split("one:end")[0]
    assert "| `two`, epochs 1 |" in text
    assert f"- `{results[1]['command']}`: " in text
    assert results[1]["date"] in text
    assert "![training curves of seed 0](results/one.png)" in text
    assert "Not run yet: `ffkern reproduce gone`." in text
    assert "| Is greed good? | fused kernels | " in text
    for name in ("one", "two", "gone", "results", "questions"):
        assert f"Prose of {name}.\n<!-- {name}:begin -->" in text
    assert text.endswith("The end.\n")
    assert "old" not in text.split()
    stored = json.loads((docs / "results" / "one.json").read_text())
    assert [stored_run["done"] for stored_run in stored["runs"]] == [True, True, False]
    assert "test" not in stored["runs"][2]
    assert stored["runs"][0]["test"] == results[0]["test"]
    wanted = ONE.as_dict()
    del wanted["seed"]
    assert stored["settings"] == wanted
    for path in (docs / "results").glob("*.json"):
        assert str(Path.cwd()) not in path.read_text()
        assert path.stat().st_size < 5000
    names = {path.name for path in (docs / "results").iterdir()}
    assert names == {"one.json", "one.png", "two+epochs=1.json", "two+epochs=1.png", "questions.json"}
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    made.main(Path("runs/reproduce"), docs)
    Path("empty").mkdir()
    made.main(Path("empty"), docs)  # what it does not hold stays
    assert before == {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}


def test_runs_with_other_settings_do_not_share_a_row(capsys, monkeypatch, no_pictures):
    Path("reproduction.md").write_text(page("results", "one", "two", "gone", "questions"))
    assert run(capsys, "two", "--seeds", "1", "-q")[0] == 0
    monkeypatch.setitem(RECIPES, "two", TWO.override(lr=0.01))
    assert run(capsys, "two", "--seeds", "2", "-q")[0] == 0
    script().main(Path("runs/reproduce"), Path("."))
    assert "left out: seed 2 in runs/reproduce/two has other settings than seed 1" in capsys.readouterr().err
    assert [stored["seed"] for stored in json.loads(Path("results/two.json").read_text())["runs"]] == [1]


def test_a_page_without_a_part_is_refused(monkeypatch):
    Path("runs").mkdir()
    Path("reproduction.md").write_text(page("results", "one", "two", "questions"))
    before = Path("reproduction.md").read_bytes()
    with pytest.raises(ValueError, match="the page has no part <!-- gone:begin -->"):
        script().main(Path("runs"), Path("."))
    assert Path("reproduction.md").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="RUNS is nowhere"):
        script().main(Path("nowhere"), Path("."))


def test_the_page_has_a_part_for_every_recipe(monkeypatch):
    monkeypatch.undo()
    text = (DOCS / "reproduction.md").read_text()
    made = script()
    for name in ("results", "questions", *module.published()):
        text = made.filled(text, name, "new")
    assert set(made.TO_REACH) <= set(module.published())
    assert set(module.ORDER) <= set(module.published())
    assert Recipe is ffkern.recipes.Recipe

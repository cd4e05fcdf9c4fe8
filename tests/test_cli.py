"""The command line: what it prints, writes and returns."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from interrupts import interrupt_after
from nested import assert_same
from PIL import Image

import ffkern
from ffkern import _info, checkpoint, cli
from ffkern.recipes import RECIPES, Recipe
from ffkern.trainer import evaluate

SHORT = ["train", "--dataset", "digits", "--layers", "40,30", "--epochs", "2", "--lr", "0.01", "-q"]


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    yield
    torch.set_num_threads(before)


def run(capsys, *argv):
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, " ".join(err.replace("│", " ").split())


def test_train_reports_what_the_trainer_measures(capsys):
    code, out, err = run(capsys, *SHORT, "--decay", "none", "--seed", "3", "--threads", "1", "--json", "-")
    assert (code, err) == (0, "")
    found = json.loads(out)
    chosen = RECIPES["digits"].override(layers=(40, 30), epochs=2, lr=0.01, decay="none", seed=3)
    assert found["recipe"] == chosen.as_dict()
    assert (found["machine"], found["threads"]) == (_info.machine(), 1)
    told = "ffkern train --recipe digits --layers 40,30 --epochs 2 --lr 0.01 --decay none --seed 3 --threads 1"
    assert sorted(found["command"].split("--")) == sorted(told.split("--"))
    assert (found["ffkern"], found["torch"], found["finished"]) == (ffkern.__version__, torch.__version__, True)
    digits = ffkern.data.digits().scaled("mean-image")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = ffkern.FFNet([64, 40, 30], 10, label="concat")
    opt = ffkern.optim.Adam(net.layers.parameters(), lr=0.01)
    trainer = ffkern.Trainer(net, opt, epochs=2, batch_size=50, seed=3)
    history = trainer.fit(digits.train_x, digits.train_y)
    for seen, wanted in zip(found["epochs"], history.as_dicts(), strict=True):
        assert seen["layers"] == list(wanted["layers"])
    assert found["test"] == trainer.evaluate(digits.test_x, digits.test_y)
    assert found["test_accuracy"] == pytest.approx(1 - found["test"]["error"])
    assert (found["train_images"], found["test_images"], found["eager"]) == (1347, 450, None)


def test_train_compares_with_eager(capsys, tmp_path):
    path = tmp_path / "result.json"
    code, out, err = run(capsys, *SHORT, "--compare-eager", "--require-accuracy", "20", "--json", str(path))
    assert (code, err) == (0, "")
    eager = json.loads(path.read_text())["eager"]
    assert eager["compared_steps"] == 50
    assert eager["within_bound"] is True
    assert 0 < eager["deviation_ffkern"] < 1e-4
    assert 0 < eager["largest_share_of_bound"] <= 1
    assert eager["seconds"] > eager["median_epoch_seconds"] > 0
    assert "test error" in out
    assert "median epoch   ffkern" in out
    assert "within the bound" in out


def test_too_low_an_accuracy_is_exit_code_1(capsys):
    argv = [*SHORT, "--epochs", "0", "--compare-eager", "--quiet"]
    code, out, err = run(capsys, *argv)
    assert code == 1
    assert "%; expected at least 95 %" in err
    assert "test error" in out
    assert run(capsys, *SHORT, "--epochs", "0", "--quiet")[0] == 0


def test_leaving_the_bound_is_exit_code_1(capsys, monkeypatch):
    real = ffkern.FFNet.metrics
    monkeypatch.setattr(
        ffkern.FFNet,
        "metrics",
        lambda self: [{**m, "loss": m["loss"] * 1.001} for m in real(self)],
    )
    code, out, err = run(capsys, *SHORT, "--compare-eager", "--require-accuracy", "0", "--quiet")
    assert code == 1
    assert "the losses of the first 50 steps leave the bound" in err
    assert "OUTSIDE the bound" in out


def test_hard_negatives_train_a_head(capsys):
    code, out, _ = run(capsys, *SHORT, "--negatives", "hard", "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert (found["recipe"]["head"], found["recipe"]["negatives"]) == ("auto", "hard")
    assert found["test"]["error_softmax"] < 0.5
    assert found["epochs"][1]["head"]["accuracy"] > found["epochs"][0]["head"]["accuracy"]


def test_figures_of_rows_that_took_no_part_are_null(capsys, tmp_path):
    """JSON has no NaN; in the table they are a stroke."""

    def refused(name):
        raise AssertionError(name)

    argv = ("train", "--layers", "9", "--epochs", "1", "--phase", "10000", "--threads", "1")
    code, out, _ = run(capsys, *argv, "--out", str(tmp_path / "run"))
    assert code == 0
    assert " - " in next(line for line in out.splitlines() if line.startswith("│ 0"))
    result = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=refused)
    layer = result["epochs"][0]["layers"][0]
    assert layer["goodness_neg"] is None
    assert layer["goodness_pos"] > 0


def test_greedy_trains_layer_after_layer(capsys):
    code, out, _ = run(capsys, *SHORT, "--schedule", "greedy", "--layers", "40,30,20", "--json", "-")
    assert code == 0
    stages = [epoch["stage"] for epoch in json.loads(out)["epochs"]]
    assert stages == ["layer 0"] * 2 + ["layer 1"] * 2 + ["layer 2"] * 2


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--dataset", "mnst"], "ffkern: dataset is 'mnst'; expected one of 'digits', 'mnist'"),
        (["--recipe", "digit"], "'digit' is not one of 'digits', 'article', 'hinton', 'supervised'"),
        (["--scaling", "most"], "'most' is not one of 'none', 'mean-image', 'mean'"),
        (["--decay", "cosine"], "'cosine' is not one of 'none', 'linear'"),
        (["--label-value", "most"], "Invalid value for --label-value: 'most'; expected a number or 'max'"),
        (["--shift", "-1"], "ffkern: shift is -1; expected an integer of at least 0"),
        (["--shift", "1"], "ffkern: shift is 1; expected 0 with scaling='mean-image', where no pixel is blank"),
        (["--held-out", "-1"], "ffkern: held_out is -1; expected an integer of at least 0"),
        (["--held-out", "1347"], "ffkern: count is 1347; expected an integer from 1 to 1346"),
        (["--eps", "nan"], "ffkern: eps is nan; expected a finite number"),
        (["--temperature", "0"], "ffkern: temperature is 0.0; expected a number > 0"),
        (["--iterations", "2"], "ffkern: iterations is 2; expected 1 with schedule='simultaneous'"),
        (["--schedule", "greedy-batch"], "ffkern: decay is 'linear'; expected 'none' with schedule='greedy-batch'"),
        (
            ["--head", "all", "--schedule", "greedy-batch", "--decay", "none"],
            "expected no head with schedule=",
        ),
        (["--csv"], "Invalid value for --csv/--tensorboard: there is no folder to write to; expected --out FOLDER"),
        (["--tensorboard"], "there is no folder to write to; expected --out FOLDER"),
        (["--patience", "3"], "ffkern: patience is 3; expected held-out images to watch (--held-out)"),
        (["--patience", "-1"], "patience is -1; expected"),
        (["--resume", "nowhere"], "ffkern: there is no checkpoint nowhere; expected one that `ffkern train --out"),
        (
            ["--resume", "run", "--lr", "1"],
            "Invalid value for --resume: goes on with the run's own settings; expected no --lr",
        ),
        (["--resume", "run", "--recipe", "digits"], "expected no --recipe"),
        (["--resume", "run", "--out", "x"], "Invalid value for --out: 'x'; expected none with --resume"),
        (["--compare-eager", "--out", "run"], "a comparison is not saved; expected no --out, no --resume"),
        (["--compare-eager", "--shift", "1", "--scaling", "none"], "no shift, peers or weight decay"),
        (["--seed", str(2**70)], "ffkern: "),
        (["--layers", "500,x"], "Invalid value for --layers: '500,x'; expected numbers of units"),
        (["--layers", "0"], "Invalid value for --layers: '0'; expected numbers of units"),
        (["--threshold", "high"], "Invalid value for --threshold: 'high'; expected a number or"),
        (["--batch-size", "0"], "ffkern: batch_size is 0; expected an integer of at least 1"),
        (["--lr", "-1"], "ffkern: lr is -1.0; expected a number >= 0"),
        (["--negatives", "easy"], "'easy' is not one of 'uniform', 'hard', 'all'"),
        (["--negatives", "hard", "--head", "none"], "ffkern: negatives is 'hard', which draws from the"),
        (
            ["--negatives", "hard", "--schedule", "greedy"],
            "ffkern: negatives is 'hard', which needs every layer's answer",
        ),
        (
            ["--compare-eager", "--schedule", "greedy"],
            "Invalid value for --compare-eager: compares runs that see the same negatives",
        ),
        (["--epoch", "3"], "No such option: --epoch"),
        (
            ["--epochs", "-1", "--compare-eager"],
            "ffkern: epochs is -1; expected an integer of at least 0",
        ),
        (
            ["--json", "/nonexistent/result.json"],
            "Invalid value for --json: '/nonexistent/result.json'; expected '-' or a file in",
        ),
    ],
)
@pytest.mark.parametrize("folder", [[], ["--out", "run"]])
def test_mistakes_give_one_message_and_exit_code_2(capsys, monkeypatch, tmp_path, argv, text, folder):
    if folder and {"--out", "--resume", "--csv", "--tensorboard", "--compare-eager"} & set(argv):
        folder = []
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", *argv, *folder)
    assert code == 2
    assert text in err
    assert out == ""
    assert err.count("ffkern: ") + err.count("─ Error ─") == 1
    assert os.listdir(tmp_path) == []


def test_unknown_command(capsys):
    code, _, err = run(capsys, "learn")
    assert code == 2
    assert "No such command 'learn'" in err


# ---------------------------------------------------------------- a folder that keeps the run

KEPT = ["train", "--layers", "12,9", "--epochs", "3", "--held-out", "300", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that went through without a stop. Not to be written to."""
    folder = tmp_path_factory.mktemp("kept") / "deep" / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main([*KEPT, "--out", str(folder), "--csv"]) == 0, err.getvalue()
    assert err.getvalue() == ""
    assert "test error" in out.getvalue()
    return folder


def without_times(result):
    if isinstance(result, dict):
        return {k: without_times(v) for k, v in result.items() if k not in ("seconds", "median_epoch_seconds")}
    return [without_times(v) for v in result] if isinstance(result, list) else result


def test_a_kept_run_is_complete(kept):
    assert sorted(os.listdir(kept)) == ["checkpoint.pt", "metrics.csv", "result.json"]
    result, saved = json.loads((kept / "result.json").read_text()), checkpoint.load(kept)
    assert saved.recipe == RECIPES["digits"].override(layers=(12, 9), epochs=3, held_out=300)
    assert (saved.shape, saved.threads) == ((1, 8, 8), 1)
    assert result["recipe"] == saved.recipe.as_dict()
    assert result["held_out_images"] == 300
    images = saved.data()
    assert result["test"] == evaluate(saved.net, images.test_x, images.test_y)
    assert result["epochs"][-1]["validation"] == evaluate(saved.net, images.valid_x, images.valid_y)
    assert torch.equal(saved.scaling.mean, images.scaling.mean)
    rows = (kept / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4


@pytest.mark.parametrize("updates", [1, 20, 21, 40, 62])
def test_an_interrupted_run_goes_on_to_the_same_result(capsys, monkeypatch, tmp_path, kept, updates):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, updates)
        code, out, err = run(capsys, *KEPT, "--out", str(folder), "--csv")
    assert (code, out) == (130, "")
    assert err == (
        f"ffkern: stopped after {updates / 0.63:.1f} % of the updates; saved. `ffkern train --resume {folder}` goes on"
    )
    assert sorted(os.listdir(folder)) == ["checkpoint.pt", "metrics.csv"]
    assert checkpoint.load(folder).trainer["updates"] == updates
    code, out, err = run(capsys, "train", "--resume", str(folder), "-q")
    assert (code, err) == (0, "")
    assert sorted(os.listdir(folder)) == sorted(os.listdir(kept))
    first, second = (json.loads((place / "result.json").read_text()) for place in (kept, folder))
    assert without_times(first) == without_times(second)
    assert_same(checkpoint._read(kept / "checkpoint.pt"), checkpoint._read(folder / "checkpoint.pt"))
    columns = [[row.rsplit(",", 1)[0] for row in (f / "metrics.csv").read_text().splitlines()] for f in (kept, folder)]
    assert columns[0] == columns[1]


def test_resuming_a_finished_run_changes_nothing(capsys, tmp_path, kept):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes((kept / "checkpoint.pt").read_bytes())
    code, _, err = run(capsys, "train", "--resume", str(folder / "checkpoint.pt"), "-q", "--json", str(folder / "j"))
    assert (code, err) == (0, "")
    assert without_times(json.loads((folder / "j").read_text())) == without_times(
        json.loads((kept / "result.json").read_text())
    )
    assert sorted(os.listdir(folder)) == ["checkpoint.pt", "j", "result.json"]


def test_an_occupied_folder_is_refused(capsys, kept, tmp_path):
    before = {name: (kept / name).read_bytes() for name in os.listdir(kept)}
    code, out, err = run(capsys, *KEPT, "--out", str(kept))
    assert (code, out) == (2, "")
    assert f"holds a run; `ffkern train --resume {kept}` goes on with it, or name another folder" in err
    assert before == {name: (kept / name).read_bytes() for name in os.listdir(kept)}
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        code, out, err = run(capsys, *KEPT, "--out", str(tmp_path / place))
        assert (code, out) == (2, "")
        assert "is a file; expected a folder" in err or "Not a directory" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_another_thread_count_is_said(capsys, tmp_path, kept):
    (tmp_path / "checkpoint.pt").write_bytes((kept / "checkpoint.pt").read_bytes())
    code, _, err = run(capsys, "train", "--resume", str(tmp_path), "-q", "--threads", "2")
    assert code == 0
    assert err == "ffkern: --threads 2, but the run began with 1: its last bits will differ"


def test_a_run_resumed_on_other_data_is_refused(capsys, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 5, 5), np.float32), np.arange(40) % 4
    path, folder = tmp_path / "set.npz", tmp_path / "run"
    np.savez(path, train_x=x, train_y=y)
    argv = ["train", "--dataset", str(path), "--layers", "6", "--epochs", "2", "--out", str(folder), "-q"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert run(capsys, *argv)[0] == 130
    before = (folder / "checkpoint.pt").read_bytes()
    np.savez(path, train_x=x, train_y=(y + 1) % 4)
    code, out, err = run(capsys, "train", "--resume", str(folder), "-q")
    assert (code, out) == (2, "")
    assert "holds other data than the run that was saved" in err
    assert (folder / "checkpoint.pt").read_bytes() == before
    np.savez(path, train_x=x[:, 1:], train_y=y)
    code, out, err = run(capsys, "train", "--resume", str(folder), "-q")
    assert (code, out) == (2, "")
    np.savez(path, train_x=x, train_y=y)
    code, out, _ = run(capsys, "train", "--resume", str(folder), "-q")
    assert code == 0
    assert "there are no test images" in out


def test_patience_stops_a_run_for_good(capsys, tmp_path):
    argv = [*KEPT, "--epochs", "9", "--lr", "0", "--patience", "2", "--out", str(tmp_path), "--json", "-"]
    code, out, err = run(capsys, *argv)
    result = json.loads(out)
    assert (code, err, result["finished"], len(result["epochs"])) == (0, "", False, 3)
    code, out, err = run(capsys, "train", "--resume", str(tmp_path), "-q")
    assert (code, err) == (0, "")
    assert "stopped early, by the held-out images" in out
    assert len(checkpoint.load(tmp_path).history) == 3


def test_tensorboard_is_logged_in_the_folder(capsys, tmp_path):
    code, _, err = run(capsys, *KEPT, "--epochs", "1", "--out", str(tmp_path), "--tensorboard")
    assert (code, err) == (0, "")
    assert len(os.listdir(tmp_path / "tensorboard")) == 1


def test_progress_goes_to_standard_error(capsys):
    code, out, err = run(capsys, *SHORT[:-1])
    assert code == 0
    assert "all, epoch 2, loss " in err
    assert "100 %, 0:00:00 left" in err
    assert "digits: 1347 training and 450 test images; layers of 40, 30 units" in out
    assert "left" not in out


def test_every_setting_has_an_option(capsys):
    _, out, _ = run(capsys, "train", "--help")
    for setting in Recipe.settings():
        assert f"--{setting.name.replace('_', '-')} " in out
        assert " ".join(setting.metadata["help"].split()[:3]) in out


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_named(capsys, recipe):
    argv = ["--recipe", recipe, "--dataset", "digits", "--layers", "5,4", "--held-out", "100", "--epochs", "1"]
    code, out, _ = run(capsys, "train", *argv, "--iterations", "3" if recipe == "article" else "1", "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert found["recipe"]["name"] == recipe
    assert found["recipe"]["lr"] == RECIPES[recipe].lr
    assert [len(e["layers"]) for e in found["epochs"]] == [2] * len(found["epochs"])


# ---------------------------------------------------------------- eval and predict


@pytest.fixture(scope="module")
def digits():
    return ffkern.data.digits()


def test_eval_of_every_part(capsys, kept):
    result = json.loads((kept / "result.json").read_text())
    code, out, err = run(capsys, "eval", str(kept), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found.pop("dataset"), found.pop("part"), found.pop("images")) == ("digits", "test", 450)
    assert found == result["test"]
    _, out, _ = run(capsys, "eval", str(kept / "checkpoint.pt"), "--part", "held-out", "--json", "--threads", "2")
    last = result["epochs"][-1]["validation"]
    assert json.loads(out) == {"dataset": "digits", "part": "held-out", "images": 300, **last}
    code, out, _ = run(capsys, "eval", str(kept), "--part", "train")
    saved = checkpoint.load(kept)
    images = saved.data()
    error = 100 * evaluate(saved.net, images.train_x, images.train_y)["error"]
    assert out.startswith(f"digits, 1047 train images: {error:.2f} % by goodness of all layers, ")


def test_eval_of_other_data_scales_them_as_the_run_did(capsys, tmp_path, kept, digits):
    arrays = {"train_x": digits.train_x[:50], "train_y": digits.train_y[:50]}
    arrays |= {"test_x": digits.test_x, "test_y": digits.test_y}
    shaped = {k: v.reshape(-1, 8, 8).numpy() if k.endswith("x") else v.numpy() for k, v in arrays.items()}
    np.savez(tmp_path / "other.npz", **shaped)
    code, out, err = run(capsys, "eval", str(kept), "--dataset", str(tmp_path / "other.npz"), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["error"] == json.loads((kept / "result.json").read_text())["test"]["error"]
    np.savez(tmp_path / "flat.npz", train_x=shaped["train_x"][:, 1:], train_y=shaped["train_y"])
    code, out, err = run(capsys, "eval", str(kept), "--dataset", str(tmp_path / "flat.npz"), "--part", "train")
    assert (code, out) == (2, "")
    assert "has images of (1, 7, 8); expected (1, 8, 8)" in err
    code, out, err = run(capsys, "eval", str(kept), "--dataset", str(tmp_path / "flat.npz"))
    assert (code, out) == (2, "")
    assert "flat has no test images" in err
    shaped["test_y"] = shaped["test_y"] + 5
    np.savez(tmp_path / "labels.npz", **shaped)
    code, out, err = run(capsys, "eval", str(kept), "--dataset", str(tmp_path / "labels.npz"))
    assert (code, out) == (2, "")
    assert "10 classes" in err


def test_predict_arrays_and_pictures(capsys, tmp_path, kept, digits):
    saved = checkpoint.load(kept)
    rows = digits.test_x[:3]
    scaled = saved.scaling.apply(rows)
    wanted = saved.net.predict(scaled).tolist()
    np.save(tmp_path / "three.npy", rows.reshape(3, 8, 8).numpy())
    np.save(tmp_path / "one.npy", rows[0].numpy())
    picture = Image.fromarray((rows[1].reshape(8, 8).numpy() * 255).round().astype(np.uint8))
    picture.save(tmp_path / "dark.png")
    picture.point(lambda v: 255 - v).save(tmp_path / "light.png")
    picture.resize((24, 24), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    files = [str(tmp_path / name) for name in ("three.npy", "one.npy", "dark.png", "light.png", "large.png")]
    out_file = tmp_path / "labels.npy"
    code, out, err = run(capsys, "predict", str(kept), *files, "--json", "--out", str(out_file))
    answers = json.loads(out)
    assert code == 0
    names = [*(f"{files[0]}[{i}]" for i in range(3)), *files[1:]]
    assert [a["file"] for a in answers] == names
    assert [a["label"] for a in answers][:6] == [*wanted, wanted[0], wanted[1], wanted[1]]
    assert np.load(out_file).tolist() == [a["label"] for a in answers]
    goodness = saved.net.goodness(scaled)
    np.testing.assert_allclose([a["goodness"] for a in answers[:3]], goodness.transpose(0, 1).numpy(), rtol=1e-5)
    ranked = goodness.sum(0).argsort(dim=1, descending=True)
    assert [a["second"] for a in answers[:3]] == ranked[:, 1].tolist()
    assert [a["label_but_first"] for a in answers[:3]] == saved.net.predict(scaled, "all_but_first").tolist()
    assert "light.png: dark on light, so light and dark were swapped (--no-invert keeps them)" in err
    assert "large.png: resized from 24 x 24 to 8 x 8" in err
    assert "dark.png:" not in err
    code, out, err = run(capsys, "predict", str(kept), files[2], files[3], "--no-invert")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 2)
    assert lines[0].startswith(f"{files[2]}: {wanted[1]}  (second choice {int(ranked[1, 1])}; all but the first layer ")


def test_predict_by_the_softmax_head(capsys, tmp_path, digits):
    folder = tmp_path / "run"
    assert run(capsys, *KEPT, "--head", "all", "--out", str(folder))[0] == 0
    saved = checkpoint.load(folder)
    np.save(tmp_path / "x.npy", digits.test_x[:4].numpy())
    code, out, _ = run(capsys, "predict", str(folder), str(tmp_path / "x.npy"), "--json")
    chance = saved.net.logits(saved.scaling.apply(digits.test_x[:4])).softmax(1)
    assert code == 0
    assert [a["label_softmax"] for a in json.loads(out)] == chance.argmax(1).tolist()
    np.testing.assert_allclose([a["probability"] for a in json.loads(out)], chance.amax(1).numpy(), rtol=1e-5)
    _, out, _ = run(capsys, "predict", str(folder), str(tmp_path / "x.npy"))
    assert f"softmax head {int(chance[0].argmax())} ({100 * float(chance[0].max()):.1f} %)" in out.splitlines()[0]


@pytest.mark.parametrize("negatives", ["hybrid", "generated"])
def test_a_run_without_labels_answers_by_its_head(capsys, tmp_path, digits, negatives):
    folder, rows = tmp_path / "run", tmp_path / "x.npy"
    argv = [*SHORT, "--label", "none", "--negatives", negatives, "--scaling", "none"]
    code, out, err = run(capsys, *argv, "--out", str(folder))
    assert (code, err) == (0, "")
    saved = checkpoint.load(folder)
    chance = saved.net.logits(saved.scaling.apply(digits.test_x[:4])).softmax(1)
    ranked = chance.argsort(dim=1, descending=True)
    np.save(rows, digits.test_x[:4].numpy())
    code, out, _ = run(capsys, "predict", str(folder), str(rows), "--json")
    assert code == 0
    for answer, row, goodness in zip(json.loads(out), ranked, saved.net.goodness(digits.test_x[:4]).T, strict=True):
        assert (answer["label"], answer["second"], answer["label_softmax"]) == (int(row[0]), int(row[1]), int(row[0]))
        assert "label_but_first" not in answer
        assert answer["goodness"] == pytest.approx(goodness.tolist(), rel=1e-5)
    code, out, _ = run(capsys, "predict", str(folder), str(rows))
    first = f"{int(ranked[0, 0])}  (second choice {int(ranked[0, 1])}; softmax head {int(ranked[0, 0])} ("
    assert (code, out.splitlines()[0].startswith(f"{rows}[0]: {first}")) == (0, True)
    code, out, _ = run(capsys, "eval", str(folder), "--json")
    assert code == 0
    assert "error" not in json.loads(out)
    assert json.loads(out)["error_softmax"] < 0.5
    code, _, err = run(capsys, *argv, "--compare-eager")
    assert code == 2
    assert "compares runs that see the same negatives" in err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.png", "there is no file"),
        ("text.png", "cannot be read as a picture"),
        ("shape.npy", "has shape [2, 63]; expected [N, 8, 8] or [N, 64]"),
        ("nan.npy", "holds NaN or infinity; expected finite numbers"),
        ("", "there is no file"),
    ],
)
def test_predict_refuses_a_bad_file_and_writes_nothing(capsys, tmp_path, kept, name, text):
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "shape.npy", np.zeros((2, 63)))
    np.save(tmp_path / "nan.npy", np.full((2, 64), np.nan))
    np.save(tmp_path / "good.npy", np.zeros(64))
    out_file = tmp_path / "labels.npy"
    files = [str(tmp_path / "good.npy"), str(tmp_path / name)]
    code, out, err = run(capsys, "predict", str(kept), *files, "--out", str(out_file))
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("ffkern: ") == 1
    assert not out_file.exists()


@pytest.mark.parametrize(
    "argv",
    [["eval"], ["eval", "nowhere"], ["predict"], ["predict", "nowhere"], ["predict", "nowhere", "x.png"]],
    ids=" ".join,
)
def test_commands_without_a_run(capsys, monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert "Missing argument" in err or "ffkern: there is no checkpoint nowhere" in err


# ---------------------------------------------------------------- any command line at all

TEXTS = [
    "",
    "0",
    "1",
    "-1",
    "2.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-320",
    "x",
    "é",
    "--",
    "max",
    "width",
    "all",
    "none",
]
POOLS = {  # where a wild value would take minutes or gigabytes
    "layers": ["4", "3,2", "0", "", "x", "2,,2", "-1", "1.5", "٣"],
    "shift": ["0", "1", "7", "-1", "x", "1.5"],
    "iterations": ["1", "3", "0", "-1", "x"],
    "batch_size": ["1", "40", "1000000", "0", "-1", "x"],
    "epochs": ["0", "1", "-1", "x", "1.5"],
    "threads": ["1", "0", "-1", "9999", "x"],
    "dataset": ["digits", "mnist", "set.npz", "broken.npz", "none.npz", ".", "", "x"],
    "folder": [".", "nowhere", "broken.npz", ""],
    "json": ["-", "j.json", "none/j.json", ".", ""],
    "out": ["new", "new/deep", "run", ".", "broken.npz", "broken.npz/x", ""],
    "resume": ["run", "run/checkpoint.pt", "broken.npz", "nowhere", "new", ""],
    "recipe": [*RECIPES, "x"],
    "save_every": ["0", "1e9", "-1", "nan", "x"],
    "require_accuracy": ["0", "100", "101", "nan", "x"],
    "patience": ["1", "0", "x"],
    "seed": ["0", "-1", str(2**63), str(2**64), str(10**30), "x"],
}
FLAGS = ["--csv", "--tensorboard", "--compare-eager", "--quiet", "-q", "--help", "--nonsense"]


def random_argv(rng):
    settings = {f.name: f for f in Recipe.settings()}
    command = rng.choice(["train"] * 8 + ["eval", "predict"])
    argv = [command]
    if command == "train":
        names = [*settings, "json", "out", "resume", "recipe", "save_every", "require_accuracy", "patience"]
        for name in rng.sample(names, rng.choice([0, 1, 1, 2, 3, 5])):
            choices = [str(settings[name].default)] if name in settings else []
            hints = get_type_hints(Recipe)
            words = [w for w in getattr(hints.get(name), "__args__", ()) if isinstance(w, str)]
            argv += ["--" + name.replace("_", "-"), rng.choice(POOLS.get(name, [*TEXTS, *choices * 5, *words * 5]))]
        argv += rng.sample(FLAGS, rng.choice([0, 0, 1, 2]))
        if "--resume" not in argv:
            for name in ("layers", "epochs"):
                argv += ["--" + name, rng.choice(POOLS[name][:2])]
            if rng.random() < 0.9 and not {"--schedule", "--recipe", "--iterations"} & set(argv):
                argv += ["--schedule", rng.choice(["simultaneous", "greedy", "greedy-batch"])]
            if "--recipe" in argv:
                argv += ["--dataset", "digits", "--iterations", rng.choice(POOLS["iterations"])]
        return argv
    argv += [rng.choice(POOLS["resume"])] if rng.random() < 0.9 else []
    if command == "predict":
        argv += rng.choices(["x.npy", "x.png", "broken.png", "set.npz", "run", "none"], k=rng.choice([0, 1, 2]))
        argv += rng.sample(["--invert", "--no-invert", "--json", "--nonsense"], rng.choice([0, 1]))
        return argv + (["--out", rng.choice(["labels.npy", "run", "none/x.npy", ""])] if rng.random() < 0.3 else [])
    argv += ["--part", rng.choice(["test", "train", "held-out", "x"])] if rng.random() < 0.5 else []
    argv += ["--dataset", rng.choice(POOLS["dataset"])] if rng.random() < 0.4 else []
    return argv + (["--threads", rng.choice(POOLS["threads"])] if rng.random() < 0.3 else [])


@pytest.mark.filterwarnings("default")  # a warning is no traceback
@pytest.mark.parametrize("part", range(3))
def test_any_command_line_ends_in_an_answer_or_a_sentence(capsys, monkeypatch, tmp_path, digits, seed, part):
    few = ffkern.data.Dataset(
        "digits", *(t[:60] for t in (digits.train_x, digits.train_y, digits.test_x, digits.test_y)), 10, (1, 8, 8)
    )
    monkeypatch.setattr("ffkern.data.loading.digits", lambda: few)
    monkeypatch.setenv("FFKERN_DATA", str(tmp_path / "no data"))
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", train_x=np.random.default_rng(0).random((20, 8, 8)), train_y=np.arange(20) % 10)
    for name in ("broken.npz", "broken.png"):
        Path(name).write_text("broken")
    np.save("x.npy", np.zeros((2, 8, 8)))
    Image.new("L", (9, 9)).save("x.png")
    assert run(capsys, "train", "--layers", "4", "--epochs", "1", "--out", "run", "-q")[0] == 0
    rng, codes = random.Random(seed + part), []
    for _ in range(int(os.environ.get("FFKERN_TEST_FUZZ") or 100)):
        argv = random_argv(rng)
        torch.set_num_threads(1)  # several on a busy machine wait for each other most of the time
        try:
            code, out, err = run(capsys, *argv)
        except BaseException as error:
            raise AssertionError(f"{argv} raised {error!r}") from error
        codes.append(code)
        assert code in (0, 1, 2, 130), (argv, code)
        assert code != 2 or (err and not out), (argv, out)
        notes = [line for line in err.splitlines() if "resized" not in line and "swapped" not in line]
        assert code in (1, 2) or not any("ffkern: " in line for line in notes), (argv, err)
    assert {0, 2} <= set(codes)


def test_info_as_json_and_as_text(capsys, monkeypatch):
    monkeypatch.delenv("FFKERN_CUDA_DRIVER", raising=False)
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts == ffkern.info()
    assert facts["version"] == ffkern.__version__
    assert facts["torch"] == torch.__version__
    assert facts["build"]["torch"]
    assert facts["cpu"]["isa"] in facts["cpu"]["isa_available"]
    assert "portable" in facts["cpu"]["isa_available"]
    assert facts["cpu"]["gemm"] in ("blas", "own")
    assert facts["cpu"]["bfloat16"] in facts["cpu"]["bfloat16_available"]
    assert {"amx_emulated", "fma"} <= set(facts["cpu"]["bfloat16_available"])
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert facts["cuda"]["images"] == facts["build"]["cuda_archs"]
    assert facts["cuda"]["device_usable"] == torch.cuda.is_available()
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert f"{facts['cpu']['isa']} in use of" in out
    assert "float16 is storage, computed in float32" in out


def test_info_finds_the_driver_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("FFKERN_CUDA_DRIVER", "/nonexistent/libcuda.so")
    assert ffkern.info()["cuda"]["driver"] is None
    library = str(Path(ffkern.__file__).with_name("_C.so"))
    monkeypatch.setenv("FFKERN_CUDA_DRIVER", library)
    assert ffkern.info()["cuda"]["driver"] == library


def test_bench_passes_its_arguments_on(capsys, monkeypatch, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("")
    (tmp_path / "bench" / "run.py").write_text("def main(argv):\n    print(argv)\n    return 3\n")
    for name in [n for n in sys.modules if n == "bench" or n.startswith("bench.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("ffkern.cli.info.__file__", str(tmp_path / "ffkern" / "cli" / "info.py"))
    path = list(sys.path)
    code, out, _ = run(capsys, "bench", "--case", "x", "--help")
    for name in ("bench", "bench.run"):
        sys.modules.pop(name, None)
    assert (code, out) == (3, "['--case', 'x', '--help']\n")
    assert sys.path == path


def test_bench_needs_a_source_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("ffkern.cli.info.__file__", str(tmp_path / "ffkern" / "cli" / "info.py"))
    code, _, err = run(capsys, "bench")
    assert code == 2
    assert "clone the source repository and run `make bench` in it" in err


def test_missing_typer_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [n for n in sys.modules if n.startswith("ffkern.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = run(capsys, "info")
    assert code == 2
    assert err == "ffkern's command line needs typer and rich: run `pip install ffkern[cli]`"


def test_python_m_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "ffkern", "--version"],
        capture_output=True,
        text=True,
        cwd=Path(ffkern.__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ffkern.__version__)
    done = subprocess.run(
        [sys.executable, "-m", "ffkern", "train", "--layers", "no"],
        capture_output=True,
        text=True,
        cwd=Path(ffkern.__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_run_is_found_from_anywhere_and_keeps_its_scaling(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 6, 6), dtype=np.float32), np.arange(40) % 2
    np.savez("own.npz", train_x=x, train_y=y, test_x=x[:10], test_y=y[:10])
    argv = ["train", "--dataset", "own.npz", "--layers", "8", "--epochs", "1", "--out", "run", "-q"]
    assert run(capsys, *argv)[0] == 0
    before = checkpoint.load("run").data()
    np.savez("own.npz", train_x=50 * x + 3, train_y=y, test_x=x[:10], test_y=y[:10])
    monkeypatch.chdir("/")
    after = checkpoint.load(tmp_path / "run").data()
    assert torch.equal(before.test_x, after.test_x)
    assert run(capsys, "eval", str(tmp_path / "run"))[0] == 0


def test_a_diverged_run_says_so(capsys):
    code, _, err = run(capsys, *SHORT, "--lr", "1e30")
    assert code == 1
    assert "a loss is not finite: the training diverged" in err


def test_a_disk_that_is_full_at_the_end_does_not_swallow_the_result(capsys, tmp_path, monkeypatch):
    def on_end(self, trainer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Checkpointer, "on_end", on_end)
    code, out, err = run(capsys, *SHORT, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "test error" in out
    assert "the end of the run was not saved: [Errno 28] No space left on device" in err


def test_a_single_class_is_refused_before_anything_is_written(capsys, tmp_path):
    np.savez(tmp_path / "one.npz", train_x=np.random.rand(9, 5).astype("float32"), train_y=np.zeros(9, dtype="int64"))
    argv = ["train", "--dataset", str(tmp_path / "one.npz"), "--label", "concat", "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert "net has 1 class; expected at least 2" in err
    assert not (tmp_path / "run").exists()

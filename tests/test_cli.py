"""The command line: what it prints, writes and returns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ffkern
from ffkern import cli

SHORT = ["train", "--dataset", "digits", "--layers", "40,30", "--epochs", "2", "--lr", "0.01"]


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
    code, out, err = run(capsys, *SHORT, "--no-decay", "--seed", "3", "--threads", "1", "--json", "-")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["settings"] == {
        "layers": [40, 30],
        "epochs": 2,
        "batch_size": 50,
        "lr": 0.01,
        "decay": False,
        "negatives": "uniform",
        "schedule": "simultaneous",
        "norm": "rms",
        "goodness": "mean_sq",
        "threshold": 2.0,
        "head": False,
        "standardise": True,
        "seed": 3,
        "threads": 1,
    }
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
    assert "test accuracy" in out
    assert "median epoch   ffkern" in out
    assert "within the bound" in out


def test_too_low_an_accuracy_is_exit_code_1(capsys):
    argv = [*SHORT, "--epochs", "0", "--compare-eager", "--quiet"]
    code, out, err = run(capsys, *argv)
    assert code == 1
    assert "%; expected at least 95 %" in err
    assert "test accuracy" in out
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
    assert found["settings"]["head"] is True
    assert found["test"]["error_softmax"] < 0.5
    assert found["epochs"][1]["head"]["accuracy"] > found["epochs"][0]["head"]["accuracy"]


def test_greedy_trains_layer_after_layer(capsys):
    code, out, _ = run(capsys, *SHORT, "--schedule", "greedy", "--layers", "20", "--json", "-")
    assert code == 0  # --layers twice: 40,30 and 20
    stages = [epoch["stage"] for epoch in json.loads(out)["epochs"]]
    assert stages == ["layer 0"] * 2 + ["layer 1"] * 2 + ["layer 2"] * 2


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--dataset", "mnist"], "'mnist' is not one of 'digits'"),
        (["--layers", "500,x"], "Invalid value for --layers: '500,x'; expected numbers of units"),
        (["--layers", "0"], "Invalid value for --layers: '0'; expected numbers of units"),
        (["--threshold", "high"], "Invalid value for --threshold: 'high'; expected a number or"),
        (["--batch-size", "0"], "ffkern: batch_size is 0; expected an integer of at least 1"),
        (["--lr", "-1"], "ffkern: lr is -1.0; expected a number >= 0"),
        (["--negatives", "easy"], "'easy' is not one of 'uniform', 'hard', 'all'"),
        (["--negatives", "hard", "--no-head"], "ffkern: negatives is 'hard', which draws from the"),
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
            "ffkern: epochs is -1; expected an integer of at least",
        ),
        (
            ["--json", "/nonexistent/result.json"],
            "Invalid value for --json: '/nonexistent/result.json'; expected '-' or a file in",
        ),
    ],
)
def test_mistakes_give_one_message_and_exit_code_2(capsys, argv, text):
    code, out, err = run(capsys, "train", *argv)
    assert code == 2
    assert text in err
    assert out == ""


def test_unknown_command(capsys):
    code, _, err = run(capsys, "learn")
    assert code == 2
    assert "No such command 'learn'" in err


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
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert facts["cuda"]["images"] == facts["build"]["cuda_archs"]
    assert facts["cuda"]["device_usable"] == torch.cuda.is_available()
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert f"{facts['cpu']['isa']} in use of" in out
    assert "bfloat16 and float16 are storage formats for now: on the CPU they are computed" in out


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

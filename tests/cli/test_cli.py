"""The command as a user meets it: results on stdout, progress on stderr, errors in one line with their exit code."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from convnet import checkpoint
from convnet.cli import app, options, progress_bar
from convnet.cli import train as cli_train
from convnet.data.store import Store
from convnet.io.strict_json import seal, unseal
from convnet.progress import Rate

QUICK = ["--epochs", "1", "--set", "batch=64"]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """60 pictures of 2 classes in one level of folders, one of them broken."""
    generator = np.random.default_rng(0)
    for k, name in enumerate(("rose", "tulip")):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 120, (40, 50, 3), np.uint8)
            pixels[..., k] += 130
            Image.fromarray(pixels).save(tmp_path / "flowers" / name / f"{i}.jpg")
    (tmp_path / "flowers" / "rose" / "broken.jpg").write_bytes(b"")
    return tmp_path / "flowers"


def test_a_stranger_trains_on_a_folder_of_photos(run, flowers: Path, tmp_path: Path) -> None:
    code, out, err = run("prepare", flowers, "store", "--size", 32)
    assert code == 0
    assert "seen 61 = used 60 + skipped 0 + failed 1" in out
    assert "failed: rose/broken.jpg: empty file" in err
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\nnet = "lenet5"\nsize = 32\ncrop = 32\nchannels = "grey"\nmean = "rgb"\nscale = 0.01\n'
        "mirror = false\ncolour_std = 0.0\nbatch = 8\nlr = 0.02\nepochs = 12\npatience = 99\n"
        'precision = "fp32"\n'
        '[net_options]\noutput = "linear"\n',
        encoding="utf-8",
    )
    code, out, err = run("train", "store", "--recipe", recipe, "--out", "run")
    assert code == 0, err
    assert "validation (chose the net): top-1 error" in out
    assert "n 6 (0 skipped, 1 failed in preparing the store)" in out
    assert "no test pictures" in out
    assert "epoch 12/12" in err
    code, out, err = run("evaluate", "run", "store", "--views", "ten-crop", "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert scores["n"] == 6
    assert scores["split"] == "val"
    assert scores["left_out"] == {"skipped": 0, "failed": 1}
    code, out, err = run("evaluate", "run/best.ckpt", "store")
    assert code == 0
    assert out.startswith("val, single: top-1 error")
    assert "rose" in out
    code, out, err = run("predict", "run", flowers / "rose" / "0.jpg", flowers / "tulip" / "0.jpg", "--top", 1, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["class"] for row in rows] == ["rose", "tulip"]
    code, out, err = run("predict", "run", flowers / "rose" / "broken.jpg", flowers / "rose" / "1.jpg", "--json")
    assert code == 3
    answers = json.loads(out)
    assert answers[0]["failed"] == "empty file"
    assert answers[1]["classes"][0]["class"] == "rose"
    assert "broken.jpg: empty file" in err


def test_the_default_job_prepares_trains_and_tests(run, tmp_path: Path) -> None:
    code, out, err = run("train", *QUICK)
    assert code == 0, err
    assert "digits is not a store yet: preparing stores/digits-28" in err
    assert "test: top-1 error" in out
    assert "n 359" in out
    code, out, _ = run("train", *QUICK, "--json", "--quiet")
    assert json.loads(out)["run"] == "runs/lenet5_small-digits-2"


def test_strict(run, flowers: Path) -> None:
    code, out, err = run("prepare", flowers, "store", "--size", 16, "--strict")
    assert code == 3
    assert "1 pictures could not be used" in err.splitlines()[-1]
    assert Store(Path("store")).header["counts"]["used"] == 60


def test_a_lists_columns(run, flowers: Path) -> None:
    names = sorted(flowers.glob("*/*.jpg"))
    lines = [f"{path.relative_to(flowers)},{n % 7},{path.parent.name[:2]}\n" for n, path in enumerate(names)]
    (flowers / "list.csv").write_text("scan,age,kind\n" + "".join(lines), encoding="utf-8")
    code, _, err = run("check", flowers / "list.csv")
    assert (code, "scan, age, kind; say which: --name-column X --label-column Y" in err) == (2, True)
    columns = ["--label-column", "kind"]
    assert run("check", flowers / "list.csv", *columns)[0] == 0
    code, out, _ = run("prepare", flowers / "list.csv", "store", "--size", 16, *columns, "--json")
    assert (code, json.loads(out)["classes"]) == (0, ["ro", "tu"])
    for verb in ("check", "train"):
        code, _, err = run(verb, "store", *columns)
        assert (code, "store is a store and no list" in err) == (2, True)


def test_check(run, flowers: Path) -> None:
    assert run("prepare", flowers, "store", "--size", 16)[0] == 0
    assert run("check", "store")[0] == 0
    shard = Path("store/train-00000.tar")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 4
    shard.write_bytes(data)
    code, out, _ = run("check", "store")
    assert code == 3
    assert "train-00000.tar" in out
    code, out, _ = run("check", flowers)
    assert "broken.jpg" in out
    code, out, _ = run("check", flowers, "--json")
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--net", "alexnt"], "unknown net 'alexnt': did you mean 'alexnet'?"),
        (["train", "--recipe", "lenet"], "unknown recipe 'lenet': did you mean 'lenet5'?"),
        (["train", "--set", "bach=3", "--set", "lr=fast"], "did you mean 'batch'?"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "nowhere"], "nowhere"),
        (["train", "--resume"], "--resume needs the run's folder"),
        (["train", "--resume", "--out", "nowhere"], "holds no run to resume"),
        (["prepare", "digits", "store", "--size", "0"], "--size 0: must be 1 to 4096 pixels"),
        (["prepare", "digits", "store", "--encoding", "png"], "--encoding png: must be raw or jpeg"),
        (["prepare", "digits", "store", "--size", "32", "--shorter-side", "16"], "--shorter-side 16: must be 32"),
        (["prepare", "digits", "store", "--workers", "0"], "--workers 0: must be at least 1"),
        (["prepare", "nowhere", "store"], "nowhere"),
        (["evaluate", "nowhere", "store"], "nowhere: no such checkpoint"),
        (["predict", "nowhere", "x.jpg"], "nowhere: no such checkpoint"),
        (["check", "nowhere"], "nowhere"),
        *(
            ([*verb, "--device", name], f"device '{name}'")
            for name in ("tpu", "cuda:99")
            for verb in (["train"], ["benchmark", "--quick"])
        ),
    ],
)
def test_wrong_arguments(run, arguments: list[str], text: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert text in err
    assert "Traceback" not in err


def test_the_device_is_an_option_of_every_verb_with_a_net(run, untrained: Path, digits: Store, tmp_path: Path) -> None:
    """Wrong ones are told at once; `cpu` is there on every machine, where a quiet run says nothing."""
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    pictures = [["show", what, untrained, "a.png"] for what in ("cam", "occlusion", "maps", "panels")]
    stores = [["show", what, untrained, digits.path] for what in ("deconv", "neighbours", "confusion", "classes")]
    for verb in (["evaluate", untrained, digits.path], ["predict", untrained, "a.png"], *pictures, *stores):
        code, _, err = run(*verb, "--device", "cuda:99")
        assert (code, err.startswith("convnet: device 'cuda:99' is not there:")) == (2, True), (verb, err)
    assert run("predict", untrained, "a.png", "--device", "cpu")[0] == 0
    code, _, err = run("train", *QUICK, "--device", "cpu", "--out", "run", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(Path("run/environment.json").read_text(encoding="utf-8"))["device"].startswith("cpu")


def test_unknown_options_and_verbs_are_typers_usage_errors(run) -> None:
    assert run("train", "--nett", "alexnet")[0] == 2
    assert run("trian")[0] == 2
    code, out, _ = run("--version")
    assert (code, out) == (0, "convnet 0.1.0\n")
    for verb in ("prepare", "merge", "check", "train", "evaluate", "predict", "nets", "explain"):
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert f"convnet {verb} " in out, "help shows a real example"


def test_a_verb_has_at_most_eight_options_of_its_own_and_shares_the_others_in_panels(run) -> None:
    """A shared option has one sentence, in one panel, everywhere; the help of each verb shows each of its options."""
    root = typer.main.get_command(app.app)
    show = {f"show {name}": command for name, command in root.commands.pop("show").commands.items()}
    shared: dict[str, set[tuple[str, str]]] = {}
    for verb, command in {**root.commands, **show}.items():
        flags = {part.opts[0]: part for part in command.params if part.param_type_name == "option"}
        own = [flag for flag, option in flags.items() if options.panel_of(option) not in options.PANELS]
        assert len(own) <= 8, f"{verb}: {own}"
        code, out, _ = run(*verb.split(), "--help")
        assert code == 0
        titles = [line.removesuffix(":") for line in out.splitlines() if re.fullmatch(r"\S.*:", line)]
        assert titles == sorted(titles, key=["Arguments", "Options", *options.PANELS].index), verb
        assert all(f" {flag}" in out for flag in flags), verb
        for flag in flags.keys() - own - {"--out", "--batch"}:  # which say what this verb writes, and counts
            shared.setdefault(flag, set()).add((options.panel_of(flags[flag]), flags[flag].help))
    assert {flag for flag, forms in shared.items() if len(forms) > 1} == set()
    assert {"--layout", "--device", "--json"} <= shared.keys()


def test_another_stores_classes_are_refused(run, flowers: Path, few_digits: Store) -> None:
    assert run("train", str(few_digits.path), *QUICK, "--out", "run", "-q")[0] == 0
    assert run("prepare", flowers, "store", "--size", 28)[0] == 0
    code, _, err = run("evaluate", "run", "store")
    assert code == 2
    assert "prepare a store with classes of the net" in err


def test_ctrl_c_saves_and_the_named_command_goes_on(
    run, few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process: SIGINT in the middle, exit 130, and the command that it names ends like an undisturbed run."""
    monkeypatch.setattr(cli_train, "after_training", lambda *_: None)  # the report has its own tests
    command = ["train", str(few_digits.path), "--epochs", "2", "--set", "batch=16", "--out"]
    assert run(*command, "whole")[0] == 0
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "convnet.cli.app", *command, "stopped"], stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130, err
    assert err.splitlines()[-1].endswith("go on with: convnet train --resume --out stopped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
    assert run("lr", "copy", "0.001")[1].startswith("0.001: takes effect at the next epoch of the training")
    assert run("lr", "copy", "fast")[0] == 2
    assert run("train", "--resume", "--out", "stopped")[0] == 0
    assert run("lr", "stopped", "drop")[0] == 2  # it has ended
    whole, stopped = (checkpoint.load(tmp_path / out / "last.ckpt") for out in ("whole", "stopped"))
    assert all((whole.weights[name] == stopped.weights[name]).all() for name in whole.weights)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_two_sources_of_one_name_get_two_stores(run, flowers: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "flowers"
    for name in ("rose", "tulip"):
        (other / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (50, 40), (i, 0, 0)).save(other / name / f"{i}.jpg")
    common = ["--recipe", "lenet5_small", "--set", "net_options.output=linear", "--set", "loss=softmax", *QUICK, "-q"]
    for source, n in ((flowers, 1), (other, 2), (flowers, 2), (other, 2)):
        code, _, err = run("train", source, *common)
        assert code == 0, err
        assert len(list(Path("stores").iterdir())) == n
    assert not Store(Path("stores/flowers-28-2")).header["counts"]["failed"]
    (flowers / "rose" / ".DS_Store").write_bytes(b"x")
    assert run("train", flowers, *common)[0] == 0
    assert len(list(Path("stores").iterdir())) == 2, "a hidden file makes no other source"
    (flowers / "rose" / "broken.jpg").write_bytes((flowers / "rose" / "0.jpg").read_bytes())
    assert run("train", flowers, *common)[0] == 0
    assert len(list(Path("stores").iterdir())) == 3, "a mended picture does"


def test_nothing_of_the_users_is_removed(run, flowers: Path, tmp_path: Path) -> None:
    for name in ("store.unpacked", ".store.unpacked", "flowers-unpacked"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine", encoding="utf-8")
    assert run("prepare", flowers, "store", "--size", 16)[0] == 0
    for name in ("store.unpacked", ".store.unpacked", "flowers-unpacked"):
        assert (tmp_path / name / "mine").read_text(encoding="utf-8") == "mine"
    code, _, err = run("prepare", flowers, flowers / "store")
    assert code == 2
    assert "lies inside" in err
    code, _, err = run("prepare", flowers, ".", "--size", 16)
    assert code == 2
    assert "not empty" in err


def test_a_compressed_tar_is_prepared_and_its_copy_removed(run, flowers: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-czf", "flowers.tgz", "flowers"], check=True)
    code, out, err = run("prepare", "flowers.tgz", "store", "--size", 16)
    assert code == 0, err
    assert "used 60" in out
    common = ["--recipe", "lenet5_small", "--set", "net_options.output=linear", "--set", "loss=softmax", *QUICK, "-q"]
    assert run("train", "flowers.tgz", *common)[0] == 0
    assert not list(tmp_path.rglob("source.tar"))
    assert sorted(path.name for path in Path("stores").iterdir()) == ["flowers-28"]


def test_the_shorter_side_travels_with_the_net(run, tmp_path: Path) -> None:
    """Wide pictures whose class is in the middle third: seen at another scale, it would be lost."""
    generator = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(40):
            pixels = generator.integers(0, 60, (90, 90, 3), np.uint8)
            pixels[31:59, 31:45] += 150 * (k == 0)
            pixels[31:59, 45:59] += 150 * (k == 1)
            pixels[:31] += 190 * (k == 1)
            Image.fromarray(pixels).save(tmp_path / "wide" / name / f"{i}.png")
    assert run("prepare", "wide", "store", "--size", 28, "--shorter-side", 90)[0] == 0
    changes = ["--set", "net_options.output=linear", "--set", "loss=softmax", "--epochs", "30", "--set", "lr=0.03"]
    assert run("train", "store", "--recipe", "lenet5_small", *changes, "--out", "run", "-q")[0] == 0
    code, out, err = run("predict", "run", "wide/a/0.png", "wide/b/0.png", "--top", 1, "--json")
    assert [row["classes"][0]["class"] for row in json.loads(out)] == ["a", "b"], err
    assert run("prepare", "wide", "other", "--size", 28)[0] == 0
    code, _, err = run("evaluate", "run", "other")
    assert code == 2
    assert "--size 28 --shorter-side 90" in err


def test_more_epochs_survive_an_interruption(run, few_digits: Store, tmp_path: Path) -> None:
    assert run("train", few_digits.path, *QUICK, "--out", "run", "-q")[0] == 0
    assert run("train", "--resume", "--out", "run", "--epochs", "2", "-q")[0] == 0
    assert "epochs = 2" in Path("run/recipe.toml").read_text(encoding="utf-8")
    code, out, _ = run("train", "--resume", "--out", "run")
    assert "trained lenet5 for 2 epochs" in out
    moved = tmp_path / "moved"
    environment = unseal(Path("run/environment.json").read_bytes())
    Path("run/environment.json").write_bytes(seal(environment | {"store": str(moved)}))
    code, _, err = run("train", "--resume", "--out", "run")
    assert code == 2
    assert f"the store {moved} is not there; if it moved: convnet train STORE --resume --out run" in err


def test_help_does_not_load_torch() -> None:
    code = "import sys, convnet.cli.app; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("verb", ["prepare", "check"])
def test_pictures_are_prepared_and_checked_without_loading_torch(verb: str, tmp_path: Path) -> None:
    """Which would take longer than a thousand photos."""
    arguments = ["digits", str(tmp_path / "store")] if verb == "prepare" else ["digits"]
    code = (
        "import sys\n"
        "from convnet.cli import app as cli\n"
        f"sys.argv = ['convnet', {verb!r}, *{arguments!r}]\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_can_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress_bar.Lines()
    lines.note("\x1b[31mred\x07\n\r\x9bnext")
    assert capsys.readouterr().err == "?[31mred????next\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn anew in place, names can't move the cursor, and in the end it is gone and the cursor back."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    with progress_bar.shown(quiet=False) as progress:
        progress.start("epoch 2/3", 2000, done=1000)
        progress.update(1500, loss="0.4", name="\x1b[31mred")
        progress.note("a note")
        progress.warn("a warning")
    said = screen.getvalue()
    assert re.search(
        "epoch 2/3  ━━━━━━━━━···  1,500/2,000  [0-9:]+ left  [0-9,]+ pictures/s  loss 0.4  name .\\[31mred", said
    )
    assert "\x1b[31mred" not in said
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", said).splitlines()]
    assert {"a note", "warning: a warning"} <= set(lines)
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1
    assert said.endswith("\x1b[2K"), "the line is not wiped"


@pytest.mark.parametrize(("quiet", "kind"), [(True, progress_bar.Quiet), (False, progress_bar.Lines)])
def test_in_a_pipe_there_are_lines_and_asked_to_be_quiet_only_warnings(
    quiet: bool, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar.shown(quiet) as progress:
        assert type(progress) is kind
        progress.note("a note")
        progress.warn("a warning")
    assert capsys.readouterr().err == ("" if quiet else "a note\n") + "warning: a warning\n"


def test_plain_lines_tell_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("convnet.progress.monotonic", lambda: now[0])
    monkeypatch.setattr("convnet.cli.progress_bar.monotonic", lambda: now[0])
    lines = progress_bar.Lines()
    lines.start("epoch 1/2", 2000, done=1000)
    now[0] += 5
    lines.update(1100, loss="0.5")
    assert capsys.readouterr().err == ""
    now[0] += 5
    lines.update(1200, loss="0.4")
    assert capsys.readouterr().err == "epoch 1/2: 1,200/2,000  0:40 left  20 pictures/s  loss 0.4\n"
    rate = Rate(10)
    assert rate.left == "?"

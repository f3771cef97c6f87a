"""Layer tables and multiply-adds against published counts, the known differences, and the verbs that show them."""

import copy
import json
import math
import sys

import pytest
import torch

from convnet.cli import app as cli
from convnet.errors import UsageError
from convnet.nets import MODELS, create_model
from convnet.nets.describe import differences, differing_layers, differs, explain, layer_table, multiply_adds, skeleton

GIGA = {
    "alexnet": 0.724,
    "zfnet": 1.168,
    "nin_imagenet": 1.100,
    "googlenet": 1.583,
    "vgg_a": 7.61,
    "vgg_b": 11.31,
    "vgg_c": 11.77,
    "vgg_d": 15.47,
    "vgg_e": 19.63,
}


@pytest.mark.parametrize("name", GIGA)
def test_multiply_adds(name: str) -> None:
    digits = 3 if GIGA[name] < 2 else 2
    assert round(multiply_adds(skeleton(name)) / 1e9, digits) == GIGA[name]


def test_multiply_adds_of_googlenet_without_heads() -> None:
    """A forward pass runs none: the count is the same with and without them, in the table of nets too."""
    with torch.device("meta"):
        net = MODELS["googlenet"](heads=False)
    assert multiply_adds(net) == multiply_adds(skeleton("googlenet")) == 1_582_671_872
    told = explain("googlenet")
    assert (told["multiply_adds"], told["heads"]) == (1_582_671_872, ["head1", "head2"])
    assert sum(layer["multiply_adds"] for layer in told["layers"]) == 1_591_044_096


def test_multiply_adds_of_a_layer_are_its_kernels_times_its_pixels() -> None:
    rows = {layer.stage: layer for layer in layer_table(skeleton("alexnet"))}
    assert rows["conv1"].multiply_adds == 96 * 55 * 55 * 11 * 11 * 3
    assert rows["conv2"].multiply_adds == 256 * 27 * 27 * 5 * 5 * 48
    assert rows["fc8"].multiply_adds == 4096 * 1000
    assert rows["pool1"].multiply_adds == rows["norm1"].multiply_adds == 0
    assert rows["conv2"].shape == (256, 27, 27)
    assert rows["conv2"].parameters == 307_456


def test_a_real_net_is_left_as_it_was() -> None:
    net = create_model("lenet5", seed=0)
    before, training = copy.deepcopy(net.state_dict()), net.training
    assert layer_table(net) == layer_table(skeleton("lenet5"))
    assert net.training is training
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in net.parameters())


def test_every_table_adds_up() -> None:
    for name in MODELS:
        net = skeleton(name)
        rows = layer_table(net)
        assert sum(layer.parameters for layer in rows) == sum(p.numel() for p in net.parameters()), name
        assert rows[-1].shape == (net.num_classes,), name


def test_known_differences_name_nets_that_exist_and_have_a_source() -> None:
    found = [each for name in MODELS for each in differences(name)]
    assert {each.here for each in found} <= set(MODELS)
    assert all(each.source and each.what and each.of_here != each.of_there for each in found)
    for name in ("alexnet", "alexnet_2012", "alexnet_owt", "caffenet", "alexnet_caffe", "zfnet", "googlenet", "vgg_d"):
        assert differences(name), name


def test_differences_read_from_either_side() -> None:
    there, back = differences("alexnet", "alexnet_2012"), differences("alexnet_2012", "alexnet")
    assert len(there) == len(back) == 11
    assert [(each.of_here, each.of_there) for each in there] == [(each.of_there, each.of_here) for each in back]
    alpha = next(each for each in there if each.what == "LRN's alpha")
    assert "plain sum" in alpha.of_here
    assert "divided by n" in alpha.of_there
    assert differences("vgg16") == differences("vgg_d")


def test_the_papers_slips_are_told_and_are_slips() -> None:
    """Section 1's "no more than 1 %", the abstract's 650,000 units, figure 2's 253,440, against the net's layers."""
    layers = layer_table(skeleton("alexnet"))
    total = sum(layer.parameters for layer in layers)
    shares = {layer.stage: layer.parameters / total for layer in layers if layer.stage.startswith("conv")}
    assert {stage: f"{share:.2%}" for stage, share in shares.items() if share > 0.01} == {
        "conv3": "1.45%", "conv4": "1.09%",
    }  # fmt: skip
    units = {layer.stage: math.prod(layer.shape) for layer in layers if layer.stage[:2] in ("co", "fc")}
    told = {each.what: each for each in differences("alexnet") if each.there == "the paper's own numbers"}
    assert f"{units['conv1']:,}" in told["units of layer 1"].of_here
    assert "253,440" in told["units of layer 1"].of_there
    assert f"{sum(units.values()):,}" in told["units in all"].of_here
    assert told["parameters of a convolutional layer"].of_there == "each no more than 1 %"
    assert any(each.there == "the notes on classic nets" for each in differences("vgg16"))


def test_differing_layers() -> None:
    rows = differing_layers(skeleton("vgg_c"), skeleton("vgg_d"))
    assert [stage for stage, _, _ in rows] == ["conv3_3", "conv4_3", "conv5_3"]
    stage, ours, theirs = differing_layers(skeleton("vgg_a"), skeleton("vgg_a_lrn"))[0]
    assert (stage, ours) == ("norm1", None)
    assert theirs is not None
    assert theirs.shape == (64, 224, 224)
    assert differing_layers(skeleton("vgg16"), skeleton("vgg_d")) == []


def test_what_the_file_says_of_its_deviations() -> None:
    assert differs(skeleton("alexnet")).startswith("Differs: nothing in the function.")
    assert [name for name in MODELS if not differs(skeleton(name))] == []
    assert "bvlc_googlenet" in differs(skeleton("googlenet"))
    assert "\n" not in differs(skeleton("vgg_a"))


def test_unknown_nets_are_named() -> None:
    with pytest.raises(UsageError, match="unknown net 'vgg_f': did you mean 'vgg_"):
        explain("vgg_f")
    with pytest.raises(UsageError, match="unknown net 'googlenett': did you mean 'googlenet'"):
        explain("googlenet", "googlenett")


def test_options_of_a_net() -> None:
    told = explain("vgg_a", input_size=64)
    rows = {row["stage"]: row for row in told["layers"]}
    assert (rows["pool5"]["shape"], rows["fc6"]["parameters"]) == ((512, 2, 2), (512 * 2 * 2 + 1) * 4096)
    assert rows["conv1_1"]["multiply_adds"] == 64 * 64 * 64 * 3 * 3 * 3
    assert told["input"] == (3, 64, 64)
    assert told["parameters"] == 132_863_336 - 512 * (49 - 4) * 4096
    for options, text in (
        ({"input_sise": 64}, "vgg_a: unknown option 'input_sise': did you mean 'input_size'"),
        ({"input_size": 16}, "vgg_a: input_size is 16; it must be a whole number of pixels from 32 to 512"),
    ):
        with pytest.raises(UsageError, match=text):
            explain("vgg_a", **options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "300")

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convnet", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_the_verb_nets(run) -> None:
    code, out, _ = run("nets", "vgg_?")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 6
    assert lines[1].split()[:4] == ["vgg_a", "2014", "132,863,336", "7,609,090,048"]
    assert lines[1].endswith("3 x 224 x 224  vgg_a   Simonyan and Zisserman 2014")
    code, out, _ = run("nets", "--json")
    rows = json.loads(out)
    assert {row["name"] for row in rows} == set(MODELS)
    assert next(row for row in rows if row["name"] == "lenet5")["input"] == [1, 32, 32]
    assert next(row for row in rows if row["name"] == "vgg16")["own_name"] == "vgg_d"
    code, out, err = run("nets", "resnet*")
    assert (code, out) == (2, "")
    assert "no net's name matches 'resnet*'" in err
    code, out, err = run("nets", "vgg15")
    assert (code, out) == (2, "")
    assert "unknown net 'vgg15': did you mean 'vgg1" in err


def test_on_a_narrow_terminal_nothing_is_cut(run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wide, _ = run("nets", "vgg1?")
    monkeypatch.setenv("COLUMNS", "60")
    code, narrow, _ = run("nets", "vgg1?")
    assert code == 0
    assert wide.count("\n") == 5
    assert "vgg_d: Simonyan and Zisserman 2014" in wide
    assert narrow.splitlines()[2:4] == [
        "vgg11  2014  132,863,336    7,609,090,048",
        "    3 x 224 x 224  vgg_a   vgg_a: Simonyan and Zisserman 2014",
    ]
    assert narrow.split() == wide.split()
    _, narrow, _ = run("explain", "alexnet", "alexnet_2012")
    monkeypatch.setenv("COLUMNS", "300")
    _, wide, _ = run("explain", "alexnet", "alexnet_2012")
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines()))
    assert narrow.split() == wide.split()


def test_the_verb_explain(run) -> None:
    code, out, _ = run("explain", "alexnet", "alexnet_2012")
    assert code == 0
    assert out.splitlines()[:2] == [
        "alexnet: Krizhevsky, Sutskever and Hinton 2012",
        "trained by recipe alexnet; alexnet_small on less than 100,000 pictures",
    ]
    assert "total                    60,965,224      724,406,816" in out
    assert "settings that differ from alexnet_2012:" in out
    assert "conv3, conv4, conv5 N(0, 0.03) [paper 5; settings]" in out
    code, out, _ = run("explain", "vgg16", "vgg_d")
    assert "every layer has the shape and the parameters of vgg_d's" in out
    assert out.startswith("vgg16 is vgg_d: Simonyan and Zisserman 2014\n")
    assert "no other difference of settings from vgg_d is recorded" in out
    code, out, _ = run("explain", "alexnet_bn", "alexnet")
    assert "alexnet: Differs: nothing in the function." in out
    assert "input: 3 x 227 x 227; alexnet: 3 x 224 x 224 [their tables]" in out
    code, out, _ = run("explain", "caffenet", "alexnet")
    assert out.count("  input: ") == 1
    code, out, _ = run("explain", "vgg16", "--set", "input_size=64")
    assert out.startswith("vgg16 is vgg_d, input_size = 64: Simonyan and Zisserman 2014\n")
    assert "pool5    512 x 2 x 2" in out
    assert run("explain", "lenet5", "--set", "output=3")[0] == 2
    code, out, _ = run("explain", "googlenet", "--json")
    told = json.loads(out)
    assert told["layers"][0] == {
        "stage": "conv1", "shape": [64, 112, 112], "parameters": 9472, "multiply_adds": 118_013_952,
    }  # fmt: skip
    assert "googlenet_bn" in {each["there"] for each in told["differences"]}
    code, _, err = run("explain", "gogglenet")
    assert code == 2
    assert "did you mean 'googlenet'" in err

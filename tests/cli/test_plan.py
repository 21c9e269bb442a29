"""`rayff plan --simulate`: tables, JSON and mistakes, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.partition.device_profile import profile_json
from rayff.plan import main
from tests.helpers.profiles import device_profile

H200 = ["--arch", "resnet_large", "--simulate", "h200", "--batch-size", "512"]


def facts(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main([*H200, *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_several_numbers_of_devices_are_a_table_that_says_what_is_modelled(
    capsys: pytest.CaptureFixture[str],
):
    assert main([*H200, "--devices", "64,8", "--mtbf", "5000"]) == 0
    out = capsys.readouterr().out
    assert "SIMULATED: resnet_large, batch 512, bf16, NVIDIA H200" in out
    assert "layer times MODELLED from a total" in out
    assert "rates measured on NVIDIA H200 (2026-11-26)" in out
    assert "100 GB/s, 30 µs (assumed) in a node" in out
    assert "time lost" in out
    assert out.index("│       8 │") < out.index("│      64 │")


def test_one_number_of_devices_is_shown_by_stage(capsys: pytest.CaptureFixture[str]):
    options = ["--devices", "8", "--cuts", "5,9", "--replicas", "3,2,1", "--network-latency", "0"]
    assert main([*H200, *options]) == 0
    out = capsys.readouterr().out
    assert "cuts: 5,9; replicas: 3,2,1" in out
    assert "given by --network-bandwidth or --network-latency" in out
    assert "in the node" in out


def test_the_json_has_all_of_it(capsys: pytest.CaptureFixture[str]):
    found = facts(capsys, "--devices", "1,1024", "--mtbf", "1000", "--epochs", "3")
    alone, many = found["plans"]
    assert (alone["devices"], alone["speedup"], alone["efficiency"]) == (1, 1.0, 1.0)
    assert many["actors"] == sum(many["replicas"]) == sum(s["replicas"] for s in many["stages"])
    assert many["images_per_s"] == pytest.approx(512 / many["seconds_a_batch"])
    assert many["speedup"] == pytest.approx(alone["seconds_a_batch"] / many["seconds_a_batch"])
    assert many["training_seconds"] > 2.9 * many["epoch_seconds"]
    lost = many["failures"]
    assert lost["per_day"] == pytest.approx(many["actors"] * 24 / 1000)
    assert lost["checkpoint_every"] == lost["best_checkpoint_every"] <= 3
    assert lost["training_seconds"] == pytest.approx(many["training_seconds"] / (1 - lost["lost"]))
    first = many["stages"][0]
    assert first["bytes_onward"] > 0 < first["memory_bytes"]
    assert many["stages"][-1]["bytes_onward"] == 0


def test_rarer_failures_and_quicker_restarts_lose_less(capsys: pytest.CaptureFixture[str]):
    def lost(*options: str) -> float:
        (plan,) = facts(capsys, "--devices", "64", *options)["plans"]
        return float(plan["failures"]["lost"])

    usual = lost("--mtbf", "100")
    assert lost("--mtbf", "200") < usual < lost("--mtbf", "100", "--restart", "600")
    assert usual < lost("--mtbf", "100", "--snapshot-cost", "20")
    assert usual < lost("--mtbf", "100", "--checkpoint-every", "1")


def test_links_and_the_least_images_change_the_plan(capsys: pytest.CaptureFixture[str]):
    def images_per_s(*options: str) -> float:
        (plan,) = facts(capsys, "--devices", "64", *options)["plans"]
        return float(plan["images_per_s"])

    usual = images_per_s()
    assert images_per_s("--network-bandwidth", "1") < usual
    assert images_per_s("--network-bandwidth", "500", "--devices-per-node", "64") > usual
    (plan,) = facts(capsys, "--devices", "64", "--least-images", "128")["plans"]
    assert max(plan["replicas"]) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "8"], "--devices needs --simulate PROFILE"),
        (["--mtbf", "8"], "--mtbf needs --simulate PROFILE"),
        (["--simulate", "h300"], "there is no profile 'h300': name one of .*h200"),
        (["--simulate", "h200", "--devices", "0"], "--devices must be above 0, not 0"),
        (["--simulate", "h200", "--devices", "100000"], "--devices is 16,384 at most"),
        (["--simulate", "h200", "--mtbf", "nan"], "--mtbf must be above 0, not nan"),
        (["--simulate", "h200", "--mtbf", "1e307"], r"from 1e-12 to 1e\+12, not 1e\+307"),
        (["--simulate", "h200", "--checkpoint-every", "2"], "--checkpoint-every needs --mtbf"),
        (
            ["--simulate", "h200", "--mtbf", "9", "--restart", "-1"],
            "--restart must be 0 or more, not -1",
        ),
        (["--simulate", "h200", "--stages", "4"], "--stages has no use with --simulate"),
        (["--simulate", "h200", "--precision", "fp32"], "is in bf16; leave the option out"),
        (["--simulate", "h200", "--least-images", "999"], "more than the 128 of a batch"),
        (["--simulate", "h200", "--loss", "linear"], "no times of tinycnn with --loss linear"),
        (
            ["--simulate", "h200", "--replicas", "4,5", "--devices", "8"],
            "--replicas and --cuts need 9 devices, and --devices has 8",
        ),
        (["--simulate", "h200", "--cuts", "9"], "the network has 4 layers"),
        (["--save-profile", "x.json", "--simulate", "h200"], "leave --simulate out"),
        (["--save-profile", "x.json", "--json"], "leave --json out"),
    ],
)
def test_mistakes_are_a_sentence(options: list[str], message: str):
    with pytest.raises(UserError, match=message):
        main(options)


def test_a_file_is_a_profile_too_and_another_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "device.json"
    file.write_text(profile_json(device_profile()))
    options = ["--simulate", str(file), "--batch-size", "4", "--devices", "1,4"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert "layers timed on some CPU, 2026-11-28" in out
    assert "no fewer than 8 were measured" in out
    with pytest.raises(UserError, match="no times of resnet with --loss goodness, but of tinycnn"):
        main([*options, "--arch", "resnet"])
    with pytest.raises(UserError, match="are those of another --width, --image-size or task"):
        main([*options, "--width", "40"])

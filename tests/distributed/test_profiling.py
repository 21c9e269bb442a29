"""`rayff plan --save-profile`: what is measured, and what a file keeps."""

import json
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.partition.device_profile import profile_json, read_profile
from rayff.plan import main
from tests.helpers.profiles import device_profile
from tests.helpers.ray_instance import local_ray

TINY = ["--width", "10", "--batch-size", "4", "--cpus-per-stage", "1", "--device", "cpu"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_profile_is_measured_extended_and_planned_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = str(tmp_path / "profiles" / "here.json")
    with local_ray():
        assert main([*TINY, "--save-profile", file]) == 0
        assert main([*TINY, "--arch", "vgg", "--save-profile", file]) == 0
    assert "times of tinycnn, vgg" in capsys.readouterr().out
    found = read_profile(file)
    assert [(t.network, t.batch_size, t.neighbours) for t in found.timings] == [
        (network, size, neighbours)
        for network in ("tinycnn", "vgg")
        for neighbours in (0, 1)
        for size in (4, 2)
    ]
    assert (found.threads, found.precision in ("fp32", "bf16")) == (1, True)
    assert found.devices_per_node == 2
    assert found.node_all_reduce is not None
    assert (found.node.source, found.network.source) == ("measured: Ray's object store", "assumed")
    options = ["--arch", "vgg", "--width", "10", "--batch-size", "4", "--simulate", file, "--json"]
    assert main([*options, "--devices", "1,8"]) == 0
    alone, eight = json.loads(capsys.readouterr().out)["plans"]
    assert 1 <= eight["speedup"] <= 8
    assert alone["speedup"] == 1


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match="format: Field required"):
        main([*TINY, "--save-profile", str(tmp_path / "broken.json")])
    with pytest.raises(UserError, match="cannot be written: .*; name another file"):
        main([*TINY, "--save-profile", "/proc/none/x.json"])
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        main([*TINY, "--save-profile", str(tmp_path)])


def test_a_profile_that_comes_along_is_in_the_format_that_is_written(tmp_path: Path):
    file = tmp_path / "device.json"
    file.write_text(profile_json(device_profile()))
    assert profile_json(read_profile(str(file))) == file.read_text()

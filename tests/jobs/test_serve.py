"""jobs/serve.py on a real Ray Serve: batches, early exit by image, and requests that are wrong."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pydantic
import pytest
from ray import serve

from jobs.serve import Options, app
from rayff import load_model
from rayff.engine.prediction import predict
from rayff.learning.readout import Temperatures
from tests.helpers.colour_run import write_image, write_run, write_task
from tests.helpers.ray_instance import local_ray
from tests.jobs.ray_nodes import free_ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, of whose images the red ones need one layer and the others two, and images."""
    folder = tmp_path_factory.mktemp("serve")
    temperatures = Temperatures(window=(0.5, 4.0), last=1.0)
    write_run(folder / "run", write_task(folder / "colours"), (0, 1), temperatures)
    for colour in range(3):
        write_image(folder / f"{colour}.png", colour)
    return folder


@pytest.mark.ray
class TestServed:
    @pytest.fixture(scope="class")
    @classmethod
    def port(cls) -> Iterator[int]:
        (port,) = free_ports(1)
        with pytest.MonkeyPatch.context() as patch:
            # of its 5 seconds a busy machine needs more to import Serve in the proxy
            patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
            with local_ray(num_cpus=3):
                serve.start(http_options={"port": port}, logging_config={"log_level": "ERROR"})
                yield port
                serve.shutdown()

    def ask(self, port: int, body: bytes) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def test_many_requests_at_once_get_what_predict_prints_and_no_image_is_refused(
        self, folder: Path, port: int
    ) -> None:
        early_exit = 0.8
        serve.run(app(Options(run=folder / "run", early_exit=early_exit, max_batch_size=4)))
        files = [str(folder / f"{colour % 3}.png") for colour in range(24)]
        expected = list(predict(load_model(folder / "run"), files, early_exit))
        with ThreadPoolExecutor(12) as pool:
            bodies = [Path(file).read_bytes() for file in files]
            answers = list(pool.map(lambda body: self.ask(port, body), bodies))
        for (status, answer), prediction in zip(answers, expected, strict=True):
            assert status == 200
            assert answer == {
                **vars(prediction),
                "probability": pytest.approx(prediction.probability, abs=1e-6),
            }
        assert {p.layers_used for p in expected} == {1}
        status, answer = self.ask(port, b"no image")
        assert status == 400
        assert answer["error"].startswith("the body is not an image that can be decoded (no known")
        serve.delete("default")


class TestMistakes:
    """Of the arguments, before anything is deployed."""

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"run": Path("nowhere")}, "there is no run directory .*nowhere"),
            ({"readout": "fusion"}, "this model has no readout fusion"),
            ({"readout": "last", "early_exit": 0.9}, "early_exit goes with readout=window alone"),
        ],
    )
    def test_is_one_sentence(self, folder: Path, change: dict[str, Any], sentence: str) -> None:
        with pytest.raises(click.ClickException, match=sentence):
            app(Options(**{"run": folder / "run", **change}))

    @pytest.mark.parametrize(
        "change", [{"early_exit": "2"}, {"early_exti": "0.9"}, {"readout": "all"}, {"cpus": "0"}]
    )
    def test_values_are_checked(self, folder: Path, change: dict[str, str]) -> None:
        with pytest.raises(pydantic.ValidationError, match=next(iter(change))):
            Options(**{"run": str(folder / "run"), **change})  # type: ignore[arg-type]

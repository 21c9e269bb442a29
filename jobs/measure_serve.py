"""Latency and accuracy of jobs/serve.py by the threshold of early exit.

    python -m jobs.measure_serve runs/first
    python -m jobs.measure_serve runs/first --thresholds 0,0.9 --clients 1,8 --images 2000

Starts a Ray instance of its own, serves the run once for each threshold, and sends the test
images of the run's task as PNG files: each client sends one image after the other. Clients,
proxy and replica share this machine. Prints a table for docs/export.md.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from PIL import Image
from ray import serve

from jobs.serve import Options, app
from rayff.engine.evaluation import image_batches, load_data
from rayff.runs.model_file import read_model

HEADER = (
    "| threshold | clients | accuracy | layers, mean | latency, median | 95% | images/s |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Answer:
    """What a request gave."""

    class_name: str
    layers: int
    seconds: float


def main() -> None:
    """Measure and print."""
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("run", type=Path)
    parser.add_argument("--thresholds", type=numbers, default=[0, 0.8, 0.9, 0.99], help="0: off")
    parser.add_argument("--clients", type=numbers, default=[1, 8])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    files, classes = test_images(given.run, given.images)
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on few cores
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"port": given.port}, logging_config={"log_level": "ERROR"})
    print(HEADER)
    for threshold in given.thresholds:
        options = Options(run=given.run, early_exit=threshold or None)
        serve.run(app(options))
        for clients in map(int, given.clients):
            ask(files[: 4 * clients], clients, given.port)  # until connections and caches are warm
            start = time.perf_counter()
            answers = ask(files, clients, given.port)
            seconds = time.perf_counter() - start
            print(row(threshold, clients, answers, classes, seconds), flush=True)
        serve.delete("default")  # an old replica would answer for a while
    ray.shutdown()


def numbers(text: str) -> list[float]:
    """Read 0,0.8,0.9."""
    return [float(part) for part in text.split(",")]


def test_images(run: Path, limit: int) -> tuple[list[bytes], list[str]]:
    """Return test images as PNG files, and their classes."""
    model = read_model(run)
    test = load_data(run, model, limit=limit).test
    images = [image for batch in image_batches(test, 256) for image in batch]
    classes = [model.class_names[label] for label in test.labels]
    return [encoded(image) for image in images], classes


def encoded(image: np.ndarray) -> bytes:
    """Return an image (K, S, S) as a PNG file."""
    file = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ask(files: Sequence[bytes], clients: int, port: int) -> list[Answer]:
    """Send the files, and return the answers in their order."""

    def client(number: int) -> Iterator[Answer]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for file in files[number::clients]:
            start = time.perf_counter()
            connection.request("POST", "/", file)
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status != 200:
                sys.exit(f"error: {body}")
            yield Answer(body["class_name"], body["layers_used"], time.perf_counter() - start)

    answers: list[Answer | None] = [None] * len(files)
    with ThreadPoolExecutor(clients) as pool:
        for number, found in enumerate(pool.map(lambda n: list(client(n)), range(clients))):
            answers[number::clients] = found
    return [answer for answer in answers if answer is not None]


def row(
    threshold: float,
    clients: int,
    answers: Sequence[Answer],
    classes: Sequence[str],
    seconds: float,
) -> str:
    """Return a line of the table."""
    right = [answer.class_name == name for answer, name in zip(answers, classes, strict=True)]
    layers = np.mean([answer.layers for answer in answers])
    median, late = np.percentile([1000 * answer.seconds for answer in answers], [50, 95])
    return (
        f"| {threshold or 'off'} | {clients} | {100 * np.mean(right):.2f}% | {layers:.2f} | "
        f"{median:.1f} ms | {late:.1f} ms | {len(answers) / seconds:,.0f} |"
    )


if __name__ == "__main__":
    main()

"""Serves the trained network of a run over HTTP with Ray Serve, in batches and with early exit.

    pip install '.[serve]'
    serve run jobs.serve:app run=runs/first early_exit=0.9
    curl --data-binary @photo.png http://127.0.0.1:8000/

A request is an image file; the answer is what `rayff predict --json` prints for it. The run
directory must be readable where the application is built and on each node that has a replica.
"""

import asyncio
import dataclasses
from pathlib import Path
from typing import Literal

import click
import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from rayff.config.errors import UserError
from rayff.data.images import Pixels, decode_image
from rayff.engine.prediction import Prediction, classify_batch, image_format, pick_device
from rayff.kernels.precision import configure_torch
from rayff.learning.classifier import Classifier
from rayff.runs.model_file import read_model


class Options(BaseModel):
    """The arguments of the application, NAME=VALUE after `serve run jobs.serve:app`."""

    model_config = ConfigDict(extra="forbid")

    run: Path
    """The run directory."""
    readout: Literal["window", "last", "fusion"] = "window"
    early_exit: float | None = Field(None, gt=0, le=1)
    """An image needs no further layer of the window once a class has this probability."""
    max_batch_size: int = Field(32, ge=1)
    batch_wait_s: float = Field(0.005, ge=0)
    """How long the first image of a batch waits for others."""
    replicas: int = Field(1, ge=1)
    cpus: int = Field(1, ge=1)
    """CPUs of a replica, and its threads."""
    gpus: float = Field(0, ge=0)
    """GPUs of a replica, or the share of one; 0 for the CPU."""

    def load(self) -> Classifier:
        """Return the model, on the CPU, with its readout."""
        model = read_model(self.run)
        model.readout = self.readout
        if self.early_exit is not None and self.readout != "window":
            raise UserError(
                f"early_exit goes with readout=window alone, not with {self.readout}: leave one "
                "of them out"
            )
        return model


@serve.deployment
class ImageClassifier:
    """One replica: the model, and the batch that gathers."""

    def __init__(self, options: Options) -> None:
        configure_torch(threads=options.cpus)
        self.early_exit = options.early_exit
        self.model = options.load().to(pick_device("cuda" if options.gpus else "cpu"))
        self.form = image_format(self.model)
        self.classify.set_max_batch_size(options.max_batch_size)
        self.classify.set_batch_wait_timeout_s(options.batch_wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """Classify the image in a request's body."""
        body = await request.body()
        try:
            decoded = await asyncio.to_thread(decode_image, body, self.form)
        except ValueError as error:
            reason = f"the body is not an image that can be decoded ({error}): send a PNG, JPEG"
            return JSONResponse({"error": f"{reason} or other image file"}, status_code=400)
        return JSONResponse(dataclasses.asdict(await self.classify(decoded.pixels)))

    @serve.batch
    async def classify(self, images: list[Pixels]) -> list[Prediction]:
        """Classify the images that have gathered, while the next ones are decoded."""
        batch = np.stack(images)
        return await asyncio.to_thread(classify_batch, self.model, batch, self.early_exit)


def app(options: Options) -> serve.Application:
    """Build the application."""
    options = options.model_copy(update={"run": options.run.absolute()})
    try:
        options.load()
    except UserError as error:  # one sentence now, instead of a replica's log later
        raise click.ClickException(str(error)) from error
    return ImageClassifier.options(
        num_replicas=options.replicas,
        max_ongoing_requests=2 * options.max_batch_size,  # one batch computes, one gathers
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    ).bind(options)

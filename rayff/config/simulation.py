"""Options of a plan that is simulated from a profile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayff.config.errors import UserError

DEVICES = (8, 64, 1024)
MOST_DEVICES = 16_384
_LEAST, _MOST = 1e-12, 1e12
"""Of a number, so that what is computed of it stays finite."""
_OF_FAILURES = ("checkpoint_every", "snapshot_cost", "restart")


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """Devices, links and failures; of use with `simulate` alone."""

    simulate: str | None = None
    """Plan for other hardware, without Ray: the profile of a device, one of {profiles}, or a file
    of --save-profile."""
    devices: tuple[int, ...] | None = None
    """Numbers of devices to plan for, such as 8,64,1024 (default), each with the best stages and
    replicas; one alone is shown by stage."""
    devices_per_node: int | None = None
    """Devices of a node. Default: the profile's."""
    node_bandwidth: float | None = None
    """GB/s between two devices of a node, in each direction. Default: the profile's."""
    node_latency: float | None = None
    """Microseconds of a message between them. Default: the profile's."""
    network_bandwidth: float | None = None
    """GB/s between devices of different nodes, for each device. Default: the profile's."""
    network_latency: float | None = None
    """Microseconds of a message between nodes. Default: the profile's."""
    least_images: int | None = None
    """Images of a batch that a replica gets at least. Default: 1."""
    chunk: int | None = None
    """Batches of a message. Default: as in training."""
    window: int | None = None
    """Chunks in flight. Default: as in training, more where the links need it."""
    epochs: int | None = None
    """Epochs of the run. Default: the recipe's."""
    images: int | None = None
    """Images of an epoch. Default: 45,000."""
    mtbf: float | None = None
    """Hours between two failures of a device, in the mean. Default: no failures."""
    checkpoint_every: int | None = None
    """Epochs between two checkpoints, with --mtbf. Default: the number that loses least time."""
    snapshot_cost: float | None = None
    """Seconds that a snapshot costs. Default: 2, as measured for resnet on two cores."""
    restart: float | None = None
    """Seconds from a failure until training goes on. Default: 12, as measured on two cores."""

    def check_simulation(self) -> None:
        """Raise a UserError where a value is impossible, or has no use without a profile."""
        for name in SimulationOptions.__dataclass_fields__:
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is None or name == "simulate":
                continue
            if self.simulate is None:
                raise UserError(f"{flag} needs --simulate PROFILE; see rayff plan --help")
            if name in _OF_FAILURES and self.mtbf is None:
                raise UserError(f"{flag} needs --mtbf HOURS: without failures it changes nothing")
            for each in value if isinstance(value, tuple) else (value,):
                may_be_none = name in ("node_latency", "network_latency", "restart")
                if not 0 <= each < math.inf or (each == 0 and not may_be_none):
                    least = "0 or more" if may_be_none else "above 0"
                    raise UserError(f"{flag} must be {least}, not {each:g}")
                if each and not _LEAST <= each <= _MOST:
                    raise UserError(f"{flag} must be from {_LEAST:g} to {_MOST:g}, not {each:g}")
        if self.devices is not None and max(self.devices) > MOST_DEVICES:
            raise UserError(f"--devices is {MOST_DEVICES:,} at most, not {max(self.devices):,}")

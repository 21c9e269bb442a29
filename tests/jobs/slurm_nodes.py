"""A Slurm of two nodes on this machine, whose names nothing resolves, with munge's own token."""

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.jobs.ray_nodes import PATIENCE_S, ended, free_ports, wait_until

NODES = ("rayff-n1", "rayff-n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONF = """\
ClusterName=rayff
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName={names[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName={names[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Be a Slurm inside; give back the environment of its commands."""
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(host=socket.gethostname(), folder=folder, ports=free_ports(3), names=NODES)
    )
    (folder / "state").mkdir()
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(64))
    munged = f"munged --foreground --force --socket={folder}/munge --key-file={key}"
    files = ("log-file", "pid-file", "seed-file")
    munged += "".join(f" --{name}={folder}/munge-{name}" for name in files)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    commands = [munged, f"slurmctld -D -f {conf}"]
    commands += [f"slurmd -D -f {conf} -N {name}" for name in NODES]
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(_daemon(command.split(), folder))
            if command is munged:
                wait_until((folder / "munge").exists, PATIENCE_S, "munge")
        wait_until(lambda: _idle(environment) == len(NODES), PATIENCE_S, "Slurm's nodes")
        yield environment


@contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("a") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        process.terminate()
        for left in ended(family, PATIENCE_S):
            left.kill()
        process.wait(PATIENCE_S)


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%t"],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split().count("idle")

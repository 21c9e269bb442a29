"""What `rayff plan` prints of a plan, measured or simulated."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from rayff.config.kernels import summarise_kernels
from rayff.config.text import plural
from rayff.console.outlet import ResultConsole


def plan_console() -> Console:
    """Return a console for tables."""
    console = ResultConsole(highlight=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width to keep to
        console = ResultConsole(highlight=False, emoji=False, width=200)
    return console


def show_plan(facts: dict[str, Any]) -> None:
    """Print a plan of this cluster."""
    console = plan_console()
    title = f"{facts['architecture']}, batch {facts['batch_size']}, {facts['resources']}"
    names = ["stage", "layers", "actors", "seconds a batch", "share of the slowest"]
    table = Table(title=title)
    for name in (*names, "weights", "memory, about", "bytes onward"):
        table.add_column(name, justify="right")
    for number, stage in enumerate(facts["stages"]):
        table.add_row(
            str(number),
            stage["layers"],
            str(stage["replicas"]),
            f"{stage['seconds']:.4f}",
            f"{100 * stage['share']:.0f}%",
            *_sizes(stage),
        )
    console.print(table)
    fast = facts["rule"] == "fast"
    how = f"kernels {summarise_kernels(facts['kernels'])}" if fast else "plain rule"
    console.print(
        f"computes with {plural(facts['threads'], 'thread')}, {facts['precision']}, {how}"
    )
    console.print(f"cuts: {_listed(facts['cuts'])}")
    if max(facts["replicas"]) > 1:
        console.print(
            f"replicas: {_listed(facts['replicas'])}, if they exchange gradients at "
            f"{facts['all_reduce_bytes_per_s'] / 1e9:g} GB/s (assumed)"
        )
    console.print(
        f"predicted speed-up over one such actor: {facts['speedup']:.2f}x "
        f"of {sum(facts['replicas'])}"
    )


def show_simulation(facts: dict[str, Any]) -> None:
    """Print simulated plans: a line for each number of devices, or one plan by stage."""
    console = plan_console()
    plans = facts["plans"]
    _show_table(console, facts)
    if len(plans) == 1:
        _show_stages(console, plans[0])
    if plans[0]["failures"]:
        _show_failures(console, plans)
    for line in _origins(facts):
        console.print(line, soft_wrap=True)


def _show_table(console: Console, facts: dict[str, Any]) -> None:
    title = (
        f"SIMULATED: {facts['architecture']}, batch {facts['batch_size']}, "
        f"{facts['precision']}, {facts['hardware']}"
    )
    names = ["devices", "used", "stages", "images/s", "speed-up", "efficiency", "bottleneck"]
    table = _table([*names, "epoch", plural(facts["epochs"], "epoch")], title)
    for plan in facts["plans"]:
        table.add_row(
            f"{plan['devices']:,}",
            f"{plan['actors']:,}",
            str(len(plan["stages"])),
            f"{plan['images_per_s']:,.0f}",
            f"{plan['speedup']:.2f}x",
            f"{plan['efficiency']:.0%}",
            plan["bottleneck"],
            _duration(plan["epoch_seconds"]),
            _duration(plan["training_seconds"]),
        )
    console.print(table)


def _show_failures(console: Console, plans: list[dict[str, Any]]) -> None:
    first = plans[0]["failures"]
    title = (
        f"failures, a snapshot of {_duration(first['snapshot_seconds'])} and a restart of "
        f"{_duration(first['restart_seconds'])}"
    )
    names = ["devices", "failures a day", "checkpoint every", "time lost", "all epochs"]
    table = _table([*names, "best checkpoint", "then lost"], title)
    for plan in plans:
        failures = plan["failures"]
        table.add_row(
            f"{plan['devices']:,}",
            f"{failures['per_day']:.3g}",
            plural(failures["checkpoint_every"], "epoch"),
            f"{failures['lost']:.2%}",
            _duration(failures["training_seconds"]),
            plural(failures["best_checkpoint_every"], "epoch"),
            f"{failures['lost_at_best']:.2%}",
        )
    console.print(table)


def _table(names: list[str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _show_stages(console: Console, plan: dict[str, Any]) -> None:
    names = ["stage", "layers", "replicas", "images", "a batch", "sums", "link", "share"]
    table = _table([*names, "weights", "memory", "onward"])
    for number, stage in enumerate(plan["stages"]):
        first, last = stage["first_layer"], stage["last_layer"]
        table.add_row(
            str(number),
            str(first) if first == last else f"{first}-{last}",
            str(stage["replicas"]),
            str(stage["images"]),
            _duration(stage["seconds"]),
            _duration(stage["sum_seconds"]) if stage["replicas"] > 1 else "-",
            _duration(stage["link_seconds"]) if stage["onward"] else "-",
            f"{stage['share']:.0%}",
            *_sizes(stage),
        )
    console.print(table)
    console.print(
        f"cuts: {_listed(plan['cuts'])}; replicas: {_listed(plan['replicas'])}; "
        f"chunk: {plan['chunk']}; window: {plan['window']}"
        + (f"; boundaries are {plan['stages'][0]['onward']}" if plan["cuts"] else ""),
        soft_wrap=True,
    )


def _origins(facts: dict[str, Any]) -> list[str]:
    """Return where the figures are from, and what they leave out, a sentence each."""
    node, network = (_link(facts["links"][name]) for name in ("node", "network"))
    ray, least = facts["ray"], min(facts["measured_batch_sizes"])
    lines = [
        facts["times"],
        f"{plural(facts['devices_per_node'], 'device')} a node; links: {node} in a node, "
        f"{network} between nodes",
        f"Ray: a call takes {1e6 * ray['message_s']:.0f} µs of an actor and "
        f"{1e6 * ray['call_s']:.0f} µs of the driver ({ray['source']})",
    ]
    fewest = min(stage["images"] for plan in facts["plans"] for stage in plan["stages"])
    if fewest < least:
        lines.append(
            f"replicas get as few as {plural(fewest, 'image')}, and no fewer than {least} were "
            "measured: that their time falls in proportion is assumed; --least-images bounds it"
        )
    most = max(facts["measured_batch_sizes"])
    if facts["batch_size"] > most:
        lines.append(f"the largest batch that was measured has {plural(most, 'image')}")
    lines.append("evaluation is not included")
    return lines


def _link(link: dict[str, Any]) -> str:
    rate = f"{link['bytes_per_s'] / 1e9:.3g} GB/s, {1e6 * link['latency_s']:.3g} µs"
    return f"{rate} ({link['source']})"


def _sizes(stage: dict[str, Any]) -> tuple[str, str, str]:
    onward = stage["bytes_onward"]
    return (
        f"{stage['weights'] / 1e6:.1f} M",
        f"{stage['memory_bytes'] / 2**20:,.0f} MiB",
        f"{onward / 2**20:.1f} MiB" if onward else "-",
    )


def _listed(numbers: list[int]) -> str:
    return ",".join(map(str, numbers)) or "none"


def _duration(seconds: float | None) -> str:
    """Return 0.31 ms, 4.2 s, 3.1 min, 2.5 h, 12 days or never."""
    if seconds is None or math.isinf(seconds):
        return "never"
    for least, size, unit in _UNITS:
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e6 * seconds:.3g} µs"


_UNITS = (
    (2 * 86_400, 86_400, "days"),
    (2 * 3600, 3600, "h"),
    (120, 60, "min"),
    (1, 1, "s"),
    (1e-3, 1e-3, "ms"),
)

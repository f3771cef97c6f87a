"""The result of a benchmark as text, for 80 columns."""

import textwrap
from collections.abc import Iterator
from typing import Any

from convnet.benchmark import WHAT, ceilings, feed
from convnet.benchmark.forms import PLAIN

WIDTH = 80  # characters: sentences are broken here
UNITS = {
    ceilings.BF16: (1e9, "GFLOP/s"),
    ceilings.FP32: (1e9, "GFLOP/s"),
    ceilings.COPY: (1e9, "GB/s read and written"),
}


def table_lines(result: dict[str, Any]) -> Iterator[str]:
    """The machine, its ceilings, a block for each net, the loader, and what was left out."""
    yield from wrapped(machine_line(result))
    n = result["budget"]["repeats"]
    yield from wrapped(
        f"medians of {n} turns (least to most){'; --quick: these rates say nothing' if result['quick'] else ''}"
    )
    yield ""
    for name, values in result["ceilings"].items():
        unit, text = UNITS[name]
        yield f"{name:<14}{_spread(values, unit)} {text}"
    for row in result["nets"]:
        yield ""
        yield from _net_lines(row)
    yield ""
    yield from _feed_lines(result["feed"])
    yield from _notes(result)


def machine_line(result: dict[str, Any]) -> str:
    """The hardware and the versions in a sentence."""
    machine = result["machine"]
    versions = {name: version for name, version in machine["versions"].items() if version and name != "system"}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    memory = "" if machine["memory"] is None else f", {machine['memory'] / 2**30:.0f} GiB"
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['cores']} processors{memory}; "
        f"{machine['device']}; {listed}"
    )


def wrapped(text: str, indent: str = "") -> list[str]:
    """The text in lines of `WIDTH` characters, of which all but the first are indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _net_lines(row: dict[str, Any]) -> Iterator[str]:
    macs = row["multiply_adds"]
    size = f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.4g} M"
    yield f"{row['net']}, batch {row['batch']:,}, {size} multiply-adds a picture"
    if not row["forms"]:
        return
    yield f"  {'form':<23}{'':<11}{'pictures/s':<25}{'x plain':>7}{'ceiling':>9}"
    for form in row["forms"]:
        for what, name in zip(WHAT, (form["form"], ""), strict=True):
            told = form[what]
            rate = "not measured" if told is None else _spread(told["rate"])
            yield f"  {name:<23}{what:<11}{rate:<25}{_times(told):>7}{_share(told):>9}".rstrip()
        if form["peak"]["bytes"] is not None:
            yield f"  {'':<23}{'memory':<11}{form['peak']['bytes'] / 2**30:.2f} GiB at the peak of training"


def _feed_lines(row: dict[str, Any]) -> Iterator[str]:
    kind = "made for this run" if row["made"] else "given"
    threads = "1 thread" if row["workers"] == 1 else f"{row['workers']} threads"
    yield from wrapped(
        f"loader, {threads}, batch {row['batch']:,}, crops for {row['net']}; the store {kind}: {row['store']}"
    )
    for name, told in row.get("parts", {}).items():
        text = f"  {name:<23}{'':<11}{_spread(told['rate']):<25}"
        if name == feed.PIPELINE and "pipeline_share" in row:
            text += f" {row['pipeline_share']:.2f} of compute"
        if name == feed.LATER and "loader_times" in row:
            text += f" {row['loader_times']:.1f} x compute"
        yield text.rstrip()


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """How the forms compute, and what is not there, each once."""
    hows: dict[str, str] = {}
    left: dict[str, list[str]] = {}
    for row in result["nets"]:
        for form in row["forms"]:
            hows.setdefault(f"{form['form']}: {form['how']}", row["net"])
        for what, why in row["left_out"].items():
            left.setdefault(f"{what}: {why}", []).append(row["net"])
    for what, why in result["feed"]["left_out"].items():
        left.setdefault(f"{what}: {why}", []).append("loader")
    if hows:
        yield ""
    for text, net in hows.items():
        only = f" ({net})" if text.startswith(PLAIN) and "groups=2" in text else ""
        yield from wrapped(f"{text}{only}", "  ")
    if left:
        yield from ("", "not measured")
    for text, nets in left.items():
        yield from wrapped(f"  {', '.join(nets)}: {text}", "    ")


def _spread(values: dict[str, Any], unit: float = 1.0) -> str:
    """`1,234 (1,200 to 1,300)`."""
    median, least, most = (_number(values[name] / unit) for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(told: dict[str, Any] | None) -> str:
    return "" if told is None or told["times_plain"] is None else f"{told['times_plain']:.2f}"


def _share(told: dict[str, Any] | None) -> str:
    return "" if told is None or told["share"] is None else f"{told['share']:.1%}"

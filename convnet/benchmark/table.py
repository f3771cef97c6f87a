"""The result of a benchmark as text, for 80 columns."""

import textwrap
from collections.abc import Iterator

from convnet.benchmark import WHAT, ceilings, loader
from convnet.benchmark.forms import PLAIN
from convnet.io.strict_json import Json

WIDTH = 80  # characters: sentences are broken here
UNITS = {
    ceilings.BF16: "GFLOP/s",
    ceilings.FP32: "GFLOP/s",
    ceilings.COPY: "GB/s read and written",
}


def table_lines(result: Json) -> Iterator[str]:
    """The machine, its ceilings, a block for each net, the loader, and what was left out."""
    yield from wrapped(machine_line(result))
    n = result["budget"]["repeats"]
    yield from wrapped(
        f"medians of {n} turns (least to most){'; --quick: these rates say nothing' if result['quick'] else ''}"
    )
    yield ""
    for name, values in result["ceilings"].items():
        yield f"{name:<14}{_spread(values, 1e9)} {UNITS[name]}"
    for row in result["nets"]:
        yield ""
        yield from _net_lines(row)
    yield ""
    yield from _loader_lines(result["feed"])
    yield from _notes(result)


def machine_line(result: Json) -> str:
    """The hardware and the versions in a sentence."""
    machine = result["machine"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items() if version and name != "system"]
    memory = "" if machine["memory"] is None else f", {machine['memory'] / 2**30:.0f} GiB"
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['cores']} processors{memory}; "
        f"{machine['device']}; {', '.join(versions)}"
    )


def wrapped(text: str, indent: str = "", width: int = WIDTH) -> list[str]:
    """The text in lines of `width` characters, of which all but the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _net_lines(row: Json) -> Iterator[str]:
    macs = row["multiply_adds"]
    size = f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.4g} M"
    yield f"{row['net']}, batch {row['batch']:,}, {size} multiply-adds a picture"
    if row["forms"]:
        yield f"  {'form':<23}{'':<11}{'pictures/s':<25}{'x plain':>7}{'ceiling':>9}"
    for form in row["forms"]:
        for what, name in zip(WHAT, (form["form"], ""), strict=True):
            if measured := form[what]:
                times, share = measured["times_plain"], measured["share"]
                cells = _spread(measured["rate"]), "" if times is None else f"{times:.2f}"
                text = f"{cells[0]:<25}{cells[1]:>7}{'' if share is None else f'{share:.1%}':>9}"
            else:
                text = "not measured"
            yield f"  {name:<23}{what:<11}{text}".rstrip()
        if form["peak"]["bytes"] is not None:
            yield f"  {'':<23}{'memory':<11}{form['peak']['bytes'] / 2**30:.2f} GiB at the peak of training"


def _loader_lines(row: Json) -> Iterator[str]:
    store = f"the store {'made for this run' if row['made'] else 'given'}: {row['store']}"
    threads = "1 thread" if row["workers"] == 1 else f"{row['workers']} threads"
    yield from wrapped(f"loader, {threads}, batch {row['batch']:,}, crops for {row['net']}; {store}")
    for name, part in row.get("parts", {}).items():
        text = f"  {name:<23}{'':<11}{_spread(part['rate']):<25}"
        if name == loader.PIPELINE and "pipeline_share" in row:
            text += f" {row['pipeline_share']:.2f} of compute"
        if name == loader.LATER and "loader_times" in row:
            text += f" {row['loader_times']:.1f} x compute"
        yield text.rstrip()


def _notes(result: Json) -> Iterator[str]:
    """How the forms compute, and what is not there, each once."""
    hows: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    for row in result["nets"]:
        for form in row["forms"]:
            hows.setdefault(f"{form['form']}: {form['how']}", row["net"])
    for name, row in [*((row["net"], row) for row in result["nets"]), ("loader", result["feed"])]:
        for what, why in row["left_out"].items():
            left_out.setdefault(f"{what}: {why}", []).append(name)
    if hows:
        yield ""
    for text, net in hows.items():
        only = f" ({net})" if text.startswith(PLAIN) and "groups=2" in text else ""
        yield from wrapped(f"{text}{only}", "  ")
    if left_out:
        yield from ("", "not measured")
    for text, nets in left_out.items():
        yield from wrapped(f"  {', '.join(nets)}: {text}", "    ")


def _spread(values: Json, unit: float = 1.0) -> str:
    """`1,234 (1,200 to 1,300)`."""
    median, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (values[name] / unit for name in ("median", "least", "most"))
    )
    return f"{median} ({least} to {most})"

"""Which of a file's tensors are the net's? Those whose names the net knows, behind one prefix, in one of its dicts.

A file of a training holds its weights under "state_dict" or "model", beside an epoch and an optimizer; wrappers put
"module.", "_orig_mod." or "model." before each name. What is the only one that fits is taken, and told; of two that
could be the weights, as state_dict and state_dict_ema, none is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnet.errors import UsageError, unknown
from convnet.nets.layers import Net
from convnet.weights.found import Found, Part
from convnet.weights.match import squeezed
from convnet.weights.names import Naming, layer_of

SHOWN = 8  # entries that a note lists


@dataclass(frozen=True)
class Candidate:
    """Tensors that could be the net's: those of `part` with `prefix`, the names of which the net knows."""

    part: Part
    prefix: str
    known: frozenset[str]

    @property
    def entry(self) -> str:
        """What a user calls it: "state_dict", "state_dict/module", or "." for names at the file's top."""
        return "/".join(filter(None, (self.part.entry, self.prefix.rstrip(".")))) or "."


def choose(
    path: Path, parts: Sequence[Part], namings: Mapping[str, Naming], entry: str | None
) -> tuple[list[Found], list[str]]:
    """The tensors that are the net's weights, their names without prefix; and what must be told of it.

    Raises: UsageError when several could be, or `entry` names none of them.
    """
    found = [each for part in parts for each in _candidates(part, namings)]
    most = max((len(each.known) for each in found), default=0)
    fitting = [each for each in found if 2 * len(each.known) >= most]
    if entry is not None:
        fitting = [each for each in found if each.entry == entry] or [e for e in found if e.part.entry == entry]
        if not fitting:
            raise UsageError(f"{path}: {unknown('entry', entry, [each.entry for each in found])}")
    if len(fitting) > 1:
        texts = ", ".join(f"{each.entry} ({len(each.known)} tensors)" for each in fitting)
        raise UsageError(
            f"{path} holds several sets of tensors that could be the weights: {texts}; choose one, as --entry "
            f"{fitting[0].entry}"
        )
    if not fitting:  # the reader says that no name is known
        return max(parts, key=lambda part: len(part.tensors)).tensors, []
    chosen = fitting[0]
    return _stripped(chosen), _told(chosen, parts)


def _candidates(part: Part, namings: Mapping[str, Naming]) -> list[Candidate]:
    """The prefixes behind which a part's names are known; one that only repeats another's tensors is none."""
    by_prefix: dict[str, set[str]] = {}
    for naming in namings.values():
        for each in part.tensors:
            pieces = each.name.split(".")
            for i in range(len(pieces)):
                if ".".join(pieces[i:]) in naming:
                    prefix = "".join(f"{piece}." for piece in pieces[:i])
                    by_prefix.setdefault(prefix, set()).add(each.name)
    best = sorted(by_prefix.items(), key=lambda item: (-len(item[1]), len(item[0])))
    taken: set[str] = set()
    candidates = []
    for prefix, known in best:
        if len(known - taken) * 2 >= len(known):
            candidates.append(Candidate(part, prefix, frozenset(known - taken)))
        taken |= known
    return candidates


def _stripped(chosen: Candidate) -> list[Found]:
    """All tensors of the part, those behind the prefix without it."""
    return [replace(each, name=each.name.removeprefix(chosen.prefix), source=each.name) for each in chosen.part.tensors]


def _told(chosen: Candidate, parts: Sequence[Part]) -> list[str]:
    notes = []
    if chosen.part.entry:
        notes.append(f"the weights are those in {chosen.part.entry!r}")
    if chosen.prefix:
        n = sum(each.name.startswith(chosen.prefix) for each in chosen.part.tensors)
        notes.append(f"{chosen.prefix!r} is taken off {n} of {len(chosen.part.tensors)} names")
    top = chosen.part.entry.partition("/")[0]
    beside = [text for text in parts[0].beside if not top or not text.startswith(f"{top} (")]
    if chosen.part is not parts[0]:
        beside += [f"{each.name} (tensor)" for each in parts[0].tensors]
        beside += chosen.part.beside
    if beside:
        more = f" and {len(beside) - SHOWN} more" if len(beside) > SHOWN else ""
        notes.append(f"also in the file, not used: {', '.join(beside[:SHOWN])}{more}")
    return notes


def rename(path: Path, found: Sequence[Found], naming: Naming, renames: Mapping[str, str]) -> list[Found]:
    """The tensors with the names that a user gives: {a layer or tensor of the file: one of ours, or of the writer's}.

    Raises: UsageError for a name that the file or the net lacks, or when two tensors would have one name.
    """
    sources = {layer_of(targets) + "." + source.rpartition(".")[2]: source for source, targets in naming.items()}
    sources |= {source: source for source in naming if source not in sources}
    known = dict.fromkeys(name.rpartition(".")[0] for name in sources)
    result = list(found)
    for old, new in renames.items():
        matching = [i for i, each in enumerate(found) if _is_or_has(each.name, old) or _is_or_has(each.source, old)]
        if not matching:
            layers = dict.fromkeys(each.name.rpartition(".")[0] for each in found)
            raise UsageError(f"{path}: --rename {old}={new}: {unknown('name of the file', old, layers)}")
        for i in matching:
            name = found[i].name if _is_or_has(found[i].name, old) else found[i].source
            ours = new + name[len(old) :]
            if ours not in sources:
                raise UsageError(f"{path}: --rename {old}={new}: {unknown('name of the net', new, known)}")
            result[i] = replace(found[i], name=sources[ours], source=found[i].source or found[i].name)
    _check_once(path, result)
    return result


def renamed_last(net: Net, found: Sequence[Found], naming: Naming) -> dict[str, str]:
    """{a layer of the file: the net's last}, as after fine-tuning: the only layer that has another name, and it fits.

    Empty when another layer is missing or left over too, or the shapes differ in more than the number of classes.
    """
    here = {each.name: each.shape for each in found}
    missing = {source: targets for source, targets in naming.items() if source not in here}
    left = here.keys() - naming.keys()
    layers = {name.rpartition(".")[0] for name in left}
    if {layer_of(targets) for targets in missing.values()} != {net.last} or len(layers) != 1:
        return {}
    (layer,) = layers
    wanted = {name.rpartition(".")[2]: tuple(net.state_dict()[targets[0]].shape) for name, targets in missing.items()}
    shapes = {kind: squeezed(here.get(f"{layer}.{kind}", ()), len(shape)) for kind, shape in wanted.items()}
    has_same_parts = left == {f"{layer}.{kind}" for kind in wanted}
    reads_the_same = all(shapes[kind][1:] == shape[1:] for kind, shape in wanted.items())
    has_one_size = len({shape[:1] for shape in shapes.values()}) == 1
    return {layer: net.last} if has_same_parts and reads_the_same and has_one_size else {}


def _is_or_has(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _check_once(path: Path, found: Iterable[Found]) -> None:
    by_name: dict[str, str] = {}
    for each in found:
        if each.name in by_name:
            raise UsageError(
                f"{path}: {by_name[each.name]} and {each.source or each.name} would both be {each.name}; rename one"
            )
        by_name[each.name] = each.source or each.name

"""Which of a file's tensors are the net's weights? Those whose keys it knows, behind one prefix, in one state dict.

A file of a training holds its weights under "state_dict" or "model", beside an epoch and an optimizer; wrappers put
"module.", "_orig_mod." or "model." before each key. The only set that fits is loaded, and reported; of two that could
be the weights, as state_dict and state_dict_ema, none is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnet.errors import UsageError, unknown
from convnet.nets.layers import Net
from convnet.weights.match import squeezed
from convnet.weights.names import KeyMap, layer_of
from convnet.weights.state_dict import FileTensor, StateDict

SHOWN = 8  # entries that a note lists


@dataclass(frozen=True)
class Candidate:
    """Tensors that could be the net's: those of a state dict with `prefix`, of which the net knows the keys `known`."""

    state_dict: StateDict
    prefix: str
    known: frozenset[str]

    @property
    def entry(self) -> str:
        """What a user calls it: "state_dict", "state_dict/module", or "." for keys at the file's top."""
        return "/".join(filter(None, (self.state_dict.entry, self.prefix.rstrip(".")))) or "."


def choose(
    path: Path, state_dicts: Sequence[StateDict], key_maps: Mapping[str, KeyMap], entry: str | None
) -> tuple[list[FileTensor], list[str]]:
    """The tensors that are the net's weights, their keys without prefix; and notes on the choice.

    Raises: UsageError when several could be, or `entry` names none of them.
    """
    candidates = [each for state_dict in state_dicts for each in _candidates(state_dict, key_maps)]
    most = max((len(each.known) for each in candidates), default=0)
    fitting = [each for each in candidates if 2 * len(each.known) >= most]
    if entry is not None:
        fitting = [each for each in candidates if each.entry == entry]
        fitting = fitting or [each for each in candidates if each.state_dict.entry == entry]
        if not fitting:
            raise UsageError(f"{path}: {unknown('entry', entry, [each.entry for each in candidates])}")
    if len(fitting) > 1:
        texts = ", ".join(f"{each.entry} ({len(each.known)} tensors)" for each in fitting)
        raise UsageError(
            f"{path} holds several sets of tensors that could be the weights: {texts}; choose one, as --entry "
            f"{fitting[0].entry}"
        )
    if not fitting:  # the reader says that no key is known
        return max(state_dicts, key=lambda state_dict: len(state_dict.tensors)).tensors, []
    chosen = fitting[0]
    tensors = [
        replace(tensor, name=tensor.name.removeprefix(chosen.prefix), source=tensor.name)
        for tensor in chosen.state_dict.tensors
    ]
    return tensors, _notes(chosen, state_dicts)


def _candidates(state_dict: StateDict, key_maps: Mapping[str, KeyMap]) -> list[Candidate]:
    """The prefixes behind which keys are known; one that only repeats another's tensors is none."""
    by_prefix: dict[str, set[str]] = {}
    for tensor in state_dict.tensors:
        parts = tensor.name.split(".")
        for i in range(len(parts)):
            if any(".".join(parts[i:]) in key_map for key_map in key_maps.values()):
                by_prefix.setdefault("".join(f"{part}." for part in parts[:i]), set()).add(tensor.name)
    seen: set[str] = set()
    candidates = []
    for prefix, known in sorted(by_prefix.items(), key=lambda item: (-len(item[1]), len(item[0]))):
        if len(known - seen) * 2 >= len(known):
            candidates.append(Candidate(state_dict, prefix, frozenset(known - seen)))
        seen |= known
    return candidates


def _notes(chosen: Candidate, state_dicts: Sequence[StateDict]) -> list[str]:
    notes, top = [], chosen.state_dict.entry.partition("/")[0]
    if top:
        notes.append(f"the weights are those in {chosen.state_dict.entry!r}")
    if chosen.prefix:
        n = sum(tensor.name.startswith(chosen.prefix) for tensor in chosen.state_dict.tensors)
        notes.append(f"{chosen.prefix!r} is removed from {n} of {len(chosen.state_dict.tensors)} names")
    others = [text for text in state_dicts[0].others if not top or not text.startswith(f"{top} (")]
    if chosen.state_dict is not state_dicts[0]:
        others += [f"{tensor.name} (tensor)" for tensor in state_dicts[0].tensors]
        others += chosen.state_dict.others
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(f"also in the file, not used: {', '.join(others[:SHOWN])}{more}")
    return notes


def rename(path: Path, tensors: Sequence[FileTensor], key_map: KeyMap, renames: Mapping[str, str]) -> list[FileTensor]:
    """The tensors with the names that a user gives: {a layer or tensor of the file: one of ours, or of the writer's}.

    Raises: UsageError for a name that the file or the net lacks, or when two tensors would have one name.
    """
    sources = {layer_of(targets) + "." + source.rpartition(".")[2]: source for source, targets in key_map.items()}
    sources = {source: source for source in key_map} | sources
    known = dict.fromkeys(name.rpartition(".")[0] for name in sources)
    result = list(tensors)
    for old, new in renames.items():
        matching = [(i, key) for i, tensor in enumerate(tensors) if (key := _key_in(tensor, old))]
        if not matching:
            layers = dict.fromkeys(tensor.name.rpartition(".")[0] for tensor in tensors)
            raise UsageError(f"{path}: --rename {old}={new}: {unknown('name of the file', old, layers)}")
        for i, key in matching:
            ours = new + key[len(old) :]
            if ours not in sources:
                raise UsageError(f"{path}: --rename {old}={new}: {unknown('name of the net', new, known)}")
            result[i] = replace(tensors[i], name=sources[ours], source=tensors[i].source or tensors[i].name)
    by_name: dict[str, str] = {}
    for tensor in result:
        source = tensor.source or tensor.name
        if by_name.setdefault(tensor.name, source) != source:
            raise UsageError(f"{path}: {by_name[tensor.name]} and {source} would both be {tensor.name}; rename one")
    return result


def _key_in(tensor: FileTensor, layer: str) -> str:
    """The tensor's name, or that in the file, whichever is `layer` or begins with it; "" where none does."""
    keys = (tensor.name, tensor.source)
    return next((key for key in keys if key == layer or key.startswith(f"{layer}.")), "")


def renamed_last(net: Net, tensors: Sequence[FileTensor], key_map: KeyMap) -> dict[str, str]:
    """{a layer of the file: the net's last}, as after fine-tuning: the only layer that has another name, and it fits.

    Empty when another layer is missing or unexpected too, or the shapes differ in more than the number of classes.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    missing = {source: targets for source, targets in key_map.items() if source not in shapes}
    unexpected = shapes.keys() - key_map.keys()
    layers = {name.rpartition(".")[0] for name in unexpected}
    if {layer_of(targets) for targets in missing.values()} != {net.last} or len(layers) != 1:
        return {}
    (layer,) = layers
    n_outputs = set()
    for source, targets in missing.items():
        expected = net.state_dict()[targets[0]].shape
        name = f"{layer}.{source.rpartition('.')[2]}"
        shape = squeezed(shapes.get(name, ()), len(expected))
        if name not in unexpected or shape[1:] != tuple(expected[1:]):
            return {}
        n_outputs.add(shape[:1])
    return {layer: net.last} if len(n_outputs) == 1 and len(unexpected) == len(missing) else {}

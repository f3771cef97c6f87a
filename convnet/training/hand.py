"""The learning rate by hand: what `convnet lr` asks of a training, and how the training takes it.

lr.jsonl in the run's folder has a row for each change asked for, in order. Those that have taken effect stand in the
checkpoints' position, so that resuming goes through the same rates.
"""

from dataclasses import replace
from pathlib import Path

from convnet import checkpoint
from convnet.errors import DataError, UsageError
from convnet.progress import Progress
from convnet.recipe import RANGES
from convnet.training import metrics_log, schedule
from convnet.training.run import HAND, Run

DROP = "drop"


def ask(out: Path, change: str) -> str:
    """Asks the training in the run folder `out` for another rate: a number, or "drop", which divides it as the recipe's
    schedule does. Returns when that is, as a sentence.

    Raises: UsageError when that is no rate, or no run that goes on; DataError; DiskError.
    """
    state, _, _ = checkpoint.load_newest(out)
    at = state.position
    if schedule.finished(state.recipe, at.epoch, at.validation_errors, at.hand):
        raise UsageError(f"{out} has ended, after epoch {at.epoch - 1}: its rate can't change any more")
    metrics_log.append(out / HAND, {"lr": change if change == DROP else _rate(change)})
    return f"takes effect at the next epoch of the training, or when it goes on: convnet train --resume --out {out}"


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value not in RANGES["lr"]:
        raise UsageError(f"{text}: a rate is a number {RANGES['lr']}, or the word {DROP}")
    return value


def take(run: Run, progress: Progress) -> None:
    """Before an epoch: the changes that were asked for since; a row that is damaged changes nothing, with a warning."""
    recipe, path = run.recipe, run.out / HAND
    lines = run.processes.together(lambda: metrics_log.whole_lines(path) if run.processes.is_first else [])[0]
    for number in range(len(run.position.hand), len(lines)):
        at = run.position
        before = schedule.rate(recipe, at.epoch, at.validation_errors, at.hand)
        try:
            lr = _asked(path, number + 1, lines[number], before / recipe.lr_divisor)
        except DataError as error:
            progress.warn(f"{error}; the rate stays as it was")
            lr = before
        run.position = replace(at, hand=(*at.hand, (at.epoch, lr)))
        progress.note(f"by hand: the rate was {before:g} and is {lr:g} from epoch {at.epoch} on")


def _asked(path: Path, number: int, line: bytes, dropped: float) -> float:
    """The rate that a line of the file asks for. Raises: DataError."""
    row = metrics_log.row(path, number, line)
    value = dropped if row.get("lr") == DROP else row.get("lr")
    if not isinstance(value, float) or value not in RANGES["lr"]:
        raise DataError(f"{path}, line {number}: {row.get('lr')} is no rate")
    return value

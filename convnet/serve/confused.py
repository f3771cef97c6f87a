"""What does a run's net take for something else, now? Its validation pictures by the most confused pairs of classes.

Nothing of a run's validation is kept but its errors, so that its best net so far is asked again, a training's too while
it runs. The pictures come from the store that the run trains on; where that is gone there is an error that says so.
"""

from pathlib import Path

from convnet.checkpoint import load
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluation.seen import some
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.strict_json import Json
from convnet.progress import Progress
from convnet.report.findings import PICTURES, Subject, pairs
from convnet.report.record import store_of
from convnet.serve.desk import Gone
from convnet.serve.runs import checkpoint_of
from convnet.training.data import choose_data
from convnet.visualize.labels import class_names, first_names


def confused(run: Path, progress: Progress, *, device: Device, names: Path | None = None, most: int = PICTURES) -> Json:
    """Of at most `most` validation pictures: errors, and the most confused pairs with pictures, the surest first.

    names: a file with classes' names for people. Raises: Gone where no net is saved; UsageError where there is no
    store, or nothing is held out; Interrupted by `progress`.
    """
    if (path := checkpoint_of(run)) is None:
        raise Gone(f"{run.name} has saved no net yet")
    kept = load(path)
    net = TrainedNet.of(kept, device)
    store = store_of(dict(kept.provenance), advice=f"convnet report {run} --store has its report with such pictures")
    store = store.with_labels_of(kept.classes, "the net")
    data = choose_data(kept.recipe, store)
    if data.val is None:
        raise UsageError(f"{run.name} holds out no validation pictures, so that nothing tells what its net confuses")
    ids = data.val_ids[some(len(data.val_ids), most)]
    classes = first_names(class_names(kept.classes, names))
    subject = Subject(net, net, classes, data.val, ids, len(data.val_ids), data.train, data.train_ids)
    scores = net.evaluate(data.val, ids=ids, progress=progress)
    epoch, fold = kept.position.epoch - 1, kept.recipe.fold_epoch
    return {
        "epoch": epoch,
        "checkpoint": path.name,
        "trained_on": bool(fold and epoch >= fold),
        "n": scores.n,
        "total": len(data.val_ids),
        "n_wrong": len(scores.mistakes()),
        "pairs": pairs(subject, scores),
    }

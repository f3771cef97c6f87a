"""The command: the only place that parses arguments, prints and exits."""

import atexit
import os
import sys
import threading


def main() -> None:
    """The entry point of `convnet` and of `python -m convnet`."""
    from convnet.cli.app import main as run

    try:
        run()
    except SystemExit as error:
        if "torch" not in sys.modules or "RANK" in os.environ or not isinstance(error.code, int | None):
            raise
        _leave(error)


def _leave(error: SystemExit) -> None:
    """Ends the process as Python does, but for taking apart what torch has loaded: half a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:  # nobody reads any more: Python has a way to say so
        raise error from None
    os._exit(int(error.code or 0))

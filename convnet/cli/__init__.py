"""The command: the only place that parses arguments, prints and exits."""


def main() -> None:
    """The entry point of `convnet` and of `python -m convnet`."""
    from convnet.cli.app import main as run

    run()

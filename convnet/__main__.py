"""`python -m convnet VERB` is the command `convnet VERB`."""

from convnet.cli import main

if __name__ == "__main__":
    main()

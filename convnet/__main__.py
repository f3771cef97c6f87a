"""`python -m convnet VERB` is the command `convnet VERB`."""

from convnet.cli import main

main()

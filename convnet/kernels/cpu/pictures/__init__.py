"""What preparation does with the pixels of a picture, in C."""

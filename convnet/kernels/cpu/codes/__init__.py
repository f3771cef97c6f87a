"""What the codes of compressed files say, in C."""

"""Data sets in the form in which their authors hand them out."""

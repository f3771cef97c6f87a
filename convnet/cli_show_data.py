"""The commands of `convnet show` that go through a data set: panels, neighbours, confusion, classes."""

"""The commands of `convnet show` that need only a net or a run's record: filters, specialisation, curves."""

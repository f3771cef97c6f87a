"""Pictures in, batches out: sources, the store, augmentation, the loader."""

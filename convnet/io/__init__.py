"""Files, numbers and signals: what everything else stands on."""

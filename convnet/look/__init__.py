"""What has a net learned, and why does it say what it says? The papers' figures: functions that return arrays."""

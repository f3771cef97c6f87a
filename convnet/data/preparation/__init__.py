"""What of a store is finished while it is being prepared, and what makes it whole."""

"""What a net makes of pictures, as numbers to search, compare and learn from."""

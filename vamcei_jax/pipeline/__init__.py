"""A run: its stages in order, from prepared data to results."""

"""What a fusion costs: which models to compare, how to measure them, and which to take."""

"""What is fastest here: every backend and saving, per op, layer and model, and what to take."""

"""Training on several devices, on one host or on many."""

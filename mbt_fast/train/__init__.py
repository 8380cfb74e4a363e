"""Training: from a manifest of media files to a checkpoint, a curve and a score."""

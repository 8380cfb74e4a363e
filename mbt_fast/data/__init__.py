"""From media files to the inputs of a model."""

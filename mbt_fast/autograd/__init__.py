"""``autograd.Function``s around the operators of ``ops``, one module per op."""

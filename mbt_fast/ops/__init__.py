"""The ops, a module each, and the backends that run them. Needs torch only."""

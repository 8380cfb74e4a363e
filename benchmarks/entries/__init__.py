"""What is measured: one module per entry of the registry, which describes its cases."""

"""What the records say: the README's tables and plots, and a page with everything."""

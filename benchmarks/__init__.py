"""Measurements of this project: recorded results, and the README's tables made from them."""

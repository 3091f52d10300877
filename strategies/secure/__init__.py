"""Sums that hide their terms from the server."""

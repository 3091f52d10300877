"""Clipping and noise on an integer lattice, from cryptographic randomness."""

"""Smaller messages: codecs, error feedback, the downlink chain."""

"""Anomaly: nodes that misbehave again and again are noticed, told and left out."""

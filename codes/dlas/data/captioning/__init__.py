"""Captions for images that have none."""

"""Texts: cleaning, and tokens."""

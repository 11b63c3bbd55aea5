"""Exact resume: killing runs, and what a restart must bring back."""

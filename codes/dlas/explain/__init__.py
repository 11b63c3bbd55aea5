"""Telling people what there is and what a file does: listings, the reference, the editor's schema, runs in words and pictures.

Everything is read from the registry, from docstrings and from the sections of `dlas.config.schema`. Importing this package does
not import torch.
"""

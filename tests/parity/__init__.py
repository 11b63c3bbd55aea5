"""Comparison with published references: numbers (golden files) and checkpoint layouts (manifests)."""

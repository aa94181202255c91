"""Judges edits whose right answer is known to the pixel."""

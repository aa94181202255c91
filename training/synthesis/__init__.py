"""Exact before/after training pairs, composed from stickers on backgrounds (DreamOmni)."""

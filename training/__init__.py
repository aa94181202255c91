"""Datasets, synthesis, objective, adapters, trainer and evaluation on plain torch modules."""

"""Whole trainings from nothing: data, model, adapters and the folder others load."""

"""Readers of the dataset layouts that `training.dataset.open_dataset` recognises."""

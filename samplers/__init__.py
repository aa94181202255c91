"""Rectified flow: the convention, schedules and solvers, as plain functions."""

"""Rectified flow: the convention, schedules, solvers and guidance, as plain functions."""

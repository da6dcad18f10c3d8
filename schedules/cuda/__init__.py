"""Schedules for GPUs: one rule per kernel kind, tried in order; the last one takes whatever is left."""

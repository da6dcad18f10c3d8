"""Patterns for a whole model under a budget: measured latency, measured sensitivity, one knapsack."""

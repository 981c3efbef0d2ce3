"""Deciding which rectifiers go: measuring, importance, budgets, the search and the plan."""

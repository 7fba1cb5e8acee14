"""Continual learning: classes arrive step by step, and a small memory stands for those that are gone."""

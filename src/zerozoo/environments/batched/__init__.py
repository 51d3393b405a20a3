"""Worlds that step thousands of copies per call in numpy."""

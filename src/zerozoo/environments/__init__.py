"""Worlds that answer actions: any gymnasium environment, batched numpy worlds, their controllers and their data."""

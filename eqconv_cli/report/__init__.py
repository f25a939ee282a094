"""Turns the engine's events into tables, progress, files and plots; computes nothing about convolutions."""

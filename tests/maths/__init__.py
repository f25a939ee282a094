"""Tests of the mathematics that families share."""

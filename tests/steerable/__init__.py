"""Tests of the family steerable."""

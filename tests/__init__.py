"""Tests of Hansa."""

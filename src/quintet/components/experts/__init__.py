"""Experts: what tells of a medium in words."""

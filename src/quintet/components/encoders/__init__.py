"""Encoders: media in, packed features out."""

"""Corpora, and how they feed the models."""

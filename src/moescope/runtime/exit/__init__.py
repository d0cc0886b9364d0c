"""Classifiers that leave the model early: their heads, their rule, their files."""

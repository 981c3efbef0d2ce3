"""Labelled data by name: images and text, opened from what lies on disk and split by a seed."""

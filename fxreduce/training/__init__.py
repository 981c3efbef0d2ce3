"""Training of classifiers: settings, the trainer, and the figures that judge its result."""

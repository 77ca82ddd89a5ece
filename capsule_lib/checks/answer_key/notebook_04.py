"""What the exercises and predictions of notebook 04 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}

"""What the exercises and predictions of notebook 06 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}

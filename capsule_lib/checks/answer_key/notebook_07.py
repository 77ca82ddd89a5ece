"""What the exercises and predictions of notebook 07 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}

"""What the exercises and predictions of notebook 02 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}

"""A trained model as something that answers."""

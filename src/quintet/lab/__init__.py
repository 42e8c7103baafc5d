"""What is done with recipes: train, show, doctor, report, the whole arc."""

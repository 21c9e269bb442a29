"""What is to be trained and how, as plain data; the standard library only."""

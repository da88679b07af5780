"""The forms in which people have the data: which one it is, and what belongs together in it."""

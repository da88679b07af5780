"""What the numbered stages share: reading, labels, folds, training, prediction, scores, reports."""

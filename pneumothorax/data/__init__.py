"""From the input folder to the image cache, the folds and the data set (00 and 01)."""

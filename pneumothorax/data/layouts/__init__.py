"""Forms of input folders: where images, labels and test images are in each."""

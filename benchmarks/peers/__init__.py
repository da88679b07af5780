"""Other people's pipelines on the same images, folds and minutes as ours."""

"""Pneumothorax segmentation on chest radiographs: what the scripts share, one room per job."""

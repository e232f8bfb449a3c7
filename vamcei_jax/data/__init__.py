"""Data: NIfTI files, preprocessing and its inverse, augmentation, batches."""

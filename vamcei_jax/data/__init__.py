"""Data: NIfTI in and out, preprocessing and its inverse, augmentation, batches; the phantom."""

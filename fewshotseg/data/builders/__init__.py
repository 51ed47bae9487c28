"""One TFDS builder per public data set; see `base` for what they share."""

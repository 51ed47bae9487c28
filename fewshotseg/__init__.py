"""Few-shot medical image segmentation with a generator trained by the segmenter's hypergradient."""

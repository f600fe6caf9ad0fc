"""Training of the lesion segmenter; the trained net itself is `cogalign.models.segmenter`."""

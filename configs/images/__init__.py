"""Models of images and texts, on pictures of handwritten digits."""

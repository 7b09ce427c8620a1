"""Records of an image and a text: files of images, arrays, and drawn digits."""

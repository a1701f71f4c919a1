"""A condition as a smaller checkpoint, which any library that reads Hugging Face folders can load."""

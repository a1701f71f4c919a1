"""What a sweep found: documents, questions, the folder, and `Losses`, the one way from a result to a number."""

"""Fine-tuning of a model with one added output layer (BERT, arXiv:1810.04805, section 4)."""

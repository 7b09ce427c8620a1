"""Layers that blocks and stacks share: norms, embeddings, positions, the pooler and dropout."""

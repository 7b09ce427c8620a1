"""Chats: templates, the programs of published templates, and the encoding of their markers."""

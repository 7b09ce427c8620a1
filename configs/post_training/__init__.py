"""Configs of the stages after pretraining: chats, then preferences."""

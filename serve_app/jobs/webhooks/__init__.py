"""Webhooks: what they say, how they are signed, where they may go, when they are tried again."""

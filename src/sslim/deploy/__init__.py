"""Deployment: exported files, how fast they are, and features of audio of any length."""

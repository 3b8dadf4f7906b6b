"""The engine process, and (without torch) its client and supervisor."""

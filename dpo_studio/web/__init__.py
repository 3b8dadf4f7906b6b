"""HTTP: REST and OpenAI-compatible routes and the outer gate."""

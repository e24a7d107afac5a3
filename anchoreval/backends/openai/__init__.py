"""The backend of servers with an OpenAI-compatible interface."""

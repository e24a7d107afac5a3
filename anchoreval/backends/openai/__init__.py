"""The backend for servers with an OpenAI-compatible interface."""

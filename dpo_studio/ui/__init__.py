"""Gradio pages. They call services and render; they hold no state."""
